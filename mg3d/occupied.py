"""One process at a time works in a run's folder, and the kernel knows whether one does.

The lock is a `flock`, so nothing is left to clean up: it is free once the process that took it and
all commands that it started (:data:`mg3d.launch.held_files`) have ended, also by SIGKILL. On a
shared file system it holds between machines if the file system has locks (NFS 4 has).
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mg3d import launch

LOCK = ".occupied"
POLL_S = 0.2
REMIND_EVERY_S = 600.0


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for the block; wait, saying for whom, while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        reminded = -REMIND_EVERY_S
        while not _lock(file.fileno(), fcntl.LOCK_EX):
            if time.monotonic() - reminded > REMIND_EVERY_S:
                reminded = time.monotonic()
                file.seek(0)
                launch.show(f"waiting: {folder} is being worked on by {file.read().strip()}")
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        launch.held_files.add(file.fileno())
        try:
            yield
        finally:
            launch.held_files.discard(file.fileno())


def is_occupied(folder: Path) -> bool:
    """Whether a process works in ``folder`` just now."""
    try:
        file = (folder / LOCK).open()
    except FileNotFoundError:
        return False
    with file:
        return not _lock(file.fileno(), fcntl.LOCK_SH)


def _lock(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
