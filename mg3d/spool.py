"""Metrics that the server did not take, kept in a file until it does: training never waits for it.

Each entry has its own time and is sent with it, and a store keeps equal entries once, so what is
sent again after a crash between sending and forgetting changes nothing.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

RETRY_EVERY_S = 30.0
BATCH = 1000  # entries a request, the most that MLflow takes


class Entry(NamedTuple):
    """One value of a metric; ``timestamp`` in ms since the epoch."""

    key: str
    value: float
    timestamp: int
    step: int


class Absent(Exception):
    """The server does not answer, or not now."""


class Spool:
    """Sends entries, in order; ``send`` raises Absent if the server is not there."""

    def __init__(
        self,
        file: Path,
        send: Callable[[Sequence[Entry]], None],
        retry_every_s: float = RETRY_EVERY_S,
    ) -> None:
        self.file, self.send, self.retry_every_s = file, send, retry_every_s
        self._not_before = 0.0

    def add(self, entries: Sequence[Entry]) -> None:
        """Send ``entries`` after those that wait, or let them wait too."""
        if self.file.exists() or time.monotonic() < self._not_before:
            self._append(entries)
            if time.monotonic() >= self._not_before:
                self.flush()
            return
        try:
            self.send(entries)
        except Absent as absent:
            self._append(entries)
            self._wait(absent)

    def flush(self) -> bool:
        """Send all that wait; whether nothing waits any more."""
        waiting = self._waiting()
        try:
            for start in range(0, len(waiting), BATCH):
                self.send(waiting[start : start + BATCH])
        except Absent as absent:
            self._wait(absent)
            return False
        if waiting:
            print(f"{len(waiting)} metrics of {self.file.parent} were sent late", file=sys.stderr)
        self.file.unlink(missing_ok=True)
        return True

    def _append(self, entries: Sequence[Entry]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)

    def _waiting(self) -> list[Entry]:
        """Entries of the file; a line cut short by a crash is none."""
        if not self.file.exists():
            return []
        found = []
        for line in self.file.read_text().splitlines():
            try:
                found.append(Entry(*json.loads(line)))
            except (json.JSONDecodeError, TypeError):
                continue
        return found

    def _wait(self, absent: Absent) -> None:
        if not self._not_before:
            print(f"{absent}: metrics wait in {self.file}; the run goes on", file=sys.stderr)
        self._not_before = time.monotonic() + self.retry_every_s
