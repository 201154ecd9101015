"""Arrays that evaluations share on disk, named by all that they were made from.

A volume as it was read, and its map under an encoder that stays frozen, are the same in every mode,
seed and task that asks for them, so each is made once. A name is a digest of content, settings and
code: nothing stochastic has one, and nothing is ever out of date. Everything here may be deleted at
any time. Several processes may use one folder: what one of them is making, the others wait for.
"""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import fingerprint

_CODE = ("data", "models", "finetuning")
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "pillow")
NameOf = Callable[[str], str | None]  # key -> name; None: this one is made anew each time
Make = Callable[[Sequence[str]], Sequence[np.ndarray | None]]


class Store:
    """A folder of .npy files; at most one of a folder in a process, because its locks are the
    process's."""

    def __init__(self, folder: Path, max_gb: float) -> None:
        """Removes what was not used for longest until ``max_gb`` are left."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._locks = (folder / "locks").open("a")
        self._trim(int(max_gb * 2**30))

    def get(self, name: str) -> np.ndarray | None:
        """None if it is not there or not whole."""
        path = self._path(name)
        try:
            array: np.ndarray = np.load(path, allow_pickle=False)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError):
            path.unlink(missing_ok=True)
            return None
        return array

    def put(self, name: str, array: np.ndarray) -> None:
        """Complete or not at all; not fsynced, because what a crash cuts short is made again."""
        path = self._path(name)
        path.parent.mkdir(exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, array, allow_pickle=False)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @contextmanager
    def claimed(self, name: str, wait: bool) -> Iterator[bool]:
        """Hold what no other process holds; False if another does and ``wait`` is not wanted.

        A lock of one byte at a place that the name decides, which a crash gives back.
        """
        place = int(name[:15], 16)
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, place)

    def close(self) -> None:
        """Give back the locks."""
        self._locks.close()

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.npy"

    def _trim(self, max_bytes: int) -> None:
        files = []
        for path in self.folder.glob("??/*"):
            with suppress(FileNotFoundError):  # another process trims too
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size


_current: ContextVar[Store | None] = ContextVar("store", default=None)


@contextmanager
def keeping(folder: Path | None, max_gb: float = 20.0) -> Iterator[None]:
    """Inside, :func:`shared` reads and writes ``folder``; nothing is kept without one, or with
    ``max_gb`` 0."""
    store = Store(folder, max_gb) if folder is not None and max_gb > 0 else None
    token = _current.set(store)
    try:
        yield
    finally:
        _current.reset(token)
        if store is not None:
            store.close()


def is_keeping() -> bool:
    """Whether there is a folder, so that names are worth their digests."""
    return _current.get() is not None


def name_of(**what: Any) -> str:
    """Digest of what an array is made from (JSON values), and of the code that makes it."""
    text = json.dumps({**what, **_made_by()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def shared(
    keys: Sequence[str], name_of: NameOf, make: Make, batch_size: int = 1
) -> Iterator[tuple[str, np.ndarray]]:
    """(key, array) of each, in any order: read if it is there, else made, ``batch_size`` at a time.

    What another process is making comes last, when that is done. ``make`` may give None for a key,
    which then is left out.
    """
    store = _current.get()
    names = {}
    pending = list(keys)
    while pending:
        mine: list[str] = []
        busy: list[str] = []
        with ExitStack() as claims:
            for key in pending:
                if key not in names:
                    names[key] = name_of(key) if store is not None else None
                name, found = names[key], None
                if store is not None and name is not None:
                    found = store.get(name)
                    if found is None:
                        if not claims.enter_context(store.claimed(name, wait=False)):
                            busy.append(key)
                            continue
                        found = store.get(name)  # done between the look and the claim
                if found is not None:
                    yield key, found
                    continue
                mine.append(key)
                if len(mine) == batch_size:
                    yield from _made(store, mine, names, make)
                    claims.close()
                    mine = []
            yield from _made(store, mine, names, make)
        for key in busy:
            assert store is not None
            with store.claimed(str(names[key]), wait=True):
                pass
        pending = busy


def _made(
    store: Store | None, keys: Sequence[str], names: dict[str, str | None], make: Make
) -> Iterator[tuple[str, np.ndarray]]:
    if not keys:
        return
    for key, array in zip(keys, make(keys), strict=True):
        if array is None:
            continue
        name = names[key]
        if store is not None and name is not None:
            store.put(name, array)
        yield key, array


@cache
def _made_by() -> dict[str, Any]:
    return {"code": fingerprint.code(_CODE), "libraries": fingerprint.libraries(_LIBRARIES)}
