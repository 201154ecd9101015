"""Copy runs/ while it is in use, and bring it back: `make backup TO=DIR`, `make restore FROM=DIR`.

Databases (MLflow's, Prefect's) are copied by sqlite's online backup, so a copy is one moment of
them, also while a server writes; other files are copied as they are, which is safe since all of
ours are renamed into place when whole. A copy is complete when its folder has its name: it is
written beside it first. Restoring refuses to overwrite.
"""

import shutil
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

SQLITE = b"SQLite format 3\x00"
BESIDE = ("-wal", "-shm", "-journal")  # of a database in use; its backup needs none of them


def copy(source: Path, to: Path) -> tuple[int, int]:
    """Copy a folder; how many databases and other files. Raises ValueError if it cannot be."""
    if not source.is_dir():
        raise ValueError(f"there is no folder {source}: name the one to copy")
    if to.exists():
        raise ValueError(f"{to} exists already: move it away, or name another place")
    partial = to.with_name(f".{to.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    num_databases = num_files = 0
    for path in sorted(source.rglob("*")):
        target = partial / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif _is_database(path):
            _copy_database(path, target)
            num_databases += 1
        elif path.is_file() and not (path.name.endswith(BESIDE) and _is_database(_owner(path))):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            num_files += 1
    partial.rename(to)
    return num_databases, num_files


def _owner(path: Path) -> Path:
    return path.with_name(path.name.rsplit("-", 1)[0])


def _is_database(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _copy_database(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(source)) as database, closing(sqlite3.connect(to)) as copied:
        database.backup(copied)
        (found,) = copied.execute("PRAGMA integrity_check").fetchone()
    if found != "ok":
        raise ValueError(f"{source} is damaged: {found}")


def main(arguments: Sequence[str]) -> int:
    """Copy, and say what; 2 for a user's mistake."""
    try:
        source, to = arguments
        num_databases, num_files = copy(Path(source), Path(to))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{source} -> {to}: {num_databases} databases, {num_files} other files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
