"""Which files a model may be asked to read: all, or those of one folder when it serves others."""

import os
from pathlib import Path

INPUTS = "MG3D_INPUTS"


def allowed(name: str) -> Path:
    """The path, if it lies in the folder that ``MG3D_INPUTS`` names, or none is named.

    Raises ValueError, which does not repeat the path.
    """
    path, root = Path(name), os.environ.get(INPUTS)
    if root and not path.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"the path lies outside the folder that {INPUTS} names")
    return path
