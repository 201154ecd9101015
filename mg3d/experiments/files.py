"""What an experiment keeps in its folder, so that an interrupted one goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mg3d import paths


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
