"""What an experiment keeps in its folder, so that an interrupted one goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.tracking import Tracked

TABLE = "table.md"
TABLE_CSV = "table.csv"


def kept(file: Path, compute: Callable[[], Any]) -> dict[str, Any]:
    """What ``file`` holds; computed and written first if it is not there.

    The folder's name carries the digest of all it depends on, so what is there is right.
    """
    if not file.exists():
        write_json(file, compute())
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def digest(tree: Mapping[str, Any]) -> str:
    """Sixteen hex digits of the canonical JSON."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """A rung's name as part of a file's name: "+ITC (ours)" -> "itc-ours"."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return "-".join(words)


def write_json(file: Path, tree: Any) -> None:
    """Atomically."""
    with paths.atomic_write(file) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n")


def save_figure(file: Path, figure: Any) -> None:
    """Atomically."""
    with paths.atomic_write(file) as temporary:
        figure.savefig(temporary, dpi=110)


def publish(
    folder: Path, result: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], tracked: Tracked
) -> None:
    """Tables and figures of ``folder`` to the tracker, then ``result.json``, the mark of the end.

    The means of each of ``rows`` become metrics at the row's number.
    """
    for number, row in enumerate(rows):
        means = {f"{folder.name.partition('-')[0]}/{key}": values["mean"]
                 for key, values in row["metrics"].items() if values["n"]}  # fmt: skip
        tracked.on_metrics(number, means)
    tracked.log_folder(folder / paths.FIGURES)
    for name in (TABLE, TABLE_CSV):
        tracked.log_file(folder / name)
    write_json(folder / paths.RESULT, result)
    tracked.log_file(folder / paths.RESULT)
