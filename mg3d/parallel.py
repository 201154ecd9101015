"""Map a function over many inputs with processes, in order, saying how long it will still take."""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

REPORT_EVERY_S = 5.0


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int, label: str
) -> Iterator[Result]:
    """``map(function, items)`` on ``num_workers`` processes; results come in the order of items.

    One worker means this process. Workers are spawned, not forked, so that threads of the caller
    cannot leave them a held lock; hence ``function`` must be importable. Its exceptions propagate:
    a function that meets bad input returns a reason instead. Workers end when their parent does.
    Progress with ETA goes to stderr, one plain line every few seconds, as a pipeline's log has no
    cursor to move.
    """
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from progress(map(function, items), len(items), label)
        return
    chunk = max(1, min(64, len(items) // (8 * num_workers)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _end_with_parent) as pool:
        results = pool.map(function, items, chunksize=chunk)
        yield from progress(results, len(items), label)


def _end_with_parent() -> None:
    """A parent that is killed closes no queue: its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def progress(results: Iterator[Result], total: int, label: str) -> Iterator[Result]:
    """Pass ``results`` through, reporting ``label: done/total, seconds left`` on stderr."""
    start = reported = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if now - reported >= REPORT_EVERY_S:
            reported = now
            left_s = (now - start) / done * (total - done)
            print(f"{label}: {done}/{total}, {left_s:.0f} s left", file=sys.stderr, flush=True)
    took_s = time.monotonic() - start
    print(f"{label}: {total}/{total}, {took_s:.1f} s", file=sys.stderr, flush=True)
