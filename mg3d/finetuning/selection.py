"""What was chosen before the test cases are looked at: written down, locked, counted.

An evaluation chooses (the step with the best validation loss, a threshold) and then opens the test
split, once. Opening locks: ``selection.json`` is written first, and nothing can be chosen after it.
How many locked selections have opened a test split is counted in a file, because each look at it
makes the next number a little less believable.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from mg3d import paths


class Selection:
    """The choices of one evaluation, which are also what a second look at the same numbers is."""

    def __init__(self, file: Path, of: Mapping[str, Any]) -> None:
        """Written to ``file`` when locked; ``of`` says of what: task, mode, seed."""
        self.file = file
        self.chosen: dict[str, Any] = {}
        self.of = dict(of)
        self.locked = False

    def choose(self, **values: Any) -> None:
        """Add what was chosen and how (JSON values). Raises ValueError when the test is open."""
        if self.locked:
            raise ValueError(
                f"{self.of['task']}: the test split is open, and {', '.join(values)} would be "
                "chosen after it; choose on validation first"
            )
        self.chosen |= values

    def lock(self) -> None:
        """Write the record; nothing can be chosen any more. Raises ValueError without a choice."""
        if self.locked:
            return
        if not self.chosen:
            raise ValueError(
                f"{self.of['task']}: the test split stays closed until something is chosen; train "
                "with fit_head, or call selection.choose(...) with what the predictions come from"
            )
        record = {**self.of, "chosen": self.chosen, "sha256": self.sha256}
        with paths.atomic_write(self.file) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n")
        self.locked = True

    @property
    def sha256(self) -> str:
        """Digest of what was chosen, of what."""
        text = json.dumps({**self.of, "chosen": self.chosen}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class ClosedSplit(dict[str, Any]):
    """Cases by split; ``split["test"]`` locks the selection first.

    Files of all cases may be read before (``items``, ``values``): reading is not choosing.
    """

    def __init__(self, split: Mapping[str, Any], selection: Selection) -> None:
        super().__init__(split)
        self.selection = selection

    def __getitem__(self, name: str) -> Any:
        if name == "test":
            self.selection.lock()
        return super().__getitem__(name)


_current: ContextVar[Selection | None] = ContextVar("selection", default=None)


@contextmanager
def selecting(selection: Selection) -> Iterator[Selection]:
    """Inside, :func:`choose` adds to ``selection``."""
    token = _current.set(selection)
    try:
        yield selection
    finally:
        _current.reset(token)


def choose(**values: Any) -> None:
    """Add to the selection of the evaluation that is under way, if there is one."""
    selection = _current.get()
    if selection is not None:
        selection.choose(**values)


def count_openings(file: Path, task: str, test_sha256: str, selection_sha256: str) -> int:
    """How many selections have opened this test split, this one included.

    Each is a line of ``file``, once: the same selection gives the same numbers again.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    entry = {"task": task, "test": test_sha256, "selection": selection_sha256}
    with file.open("a+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)  # tasks run side by side
        opened.seek(0)
        entries = [json.loads(line) for line in opened]
        if entry not in entries:
            opened.write(json.dumps(entry) + "\n")
            entries.append(entry)
    same_test = (task, test_sha256)
    return sum((known["task"], known["test"]) == same_test for known in entries)
