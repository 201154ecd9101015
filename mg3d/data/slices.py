"""A folder of JPG or PNG slices -> one array. No spacing, and the window is burned in.

Natural order of names, the first slice uppermost (as viewers export a chest); rows run front to
back and columns from the patient's right to the left.
"""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

SUFFIXES = {".jpg", ".jpeg", ".png"}
DEEP = ("I", "F")  # modes of more than 8 bits: no window is burned in, so grey means nothing
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which slice 2 comes before slice 10, and numbers before letters."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in _DIGITS.split(name)
        if part
    )


def find_slices(folder: Path) -> list[Path]:
    """JPG and PNG files in ``folder`` in natural order, without the hidden twins of archives."""
    files = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    return sorted(files, key=lambda path: natural_key(path.name))


def read_slices(files: list[Path]) -> np.ndarray:
    """Slices in order as uint8 (X, Y, Z) whose indices grow towards right, front and head.

    Raises Refused: ``too_few_slices`` without any, ``missing_slice`` if numbers are left out,
    ``undecodable`` (also for more than 8 bits), ``mixed_geometry`` if sizes differ.
    """
    from PIL import Image

    if not files:
        raise Refused(Reason.TOO_FEW_SLICES, "no JPG or PNG slices")
    if all(file.stem.isdigit() for file in files):
        for before, after in pairwise(int(file.stem) for file in files):
            if after != before + 1:
                raise Refused(Reason.MISSING_SLICE, f"slice {after} follows slice {before}")
    planes: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                if image.mode.startswith(DEEP):
                    raise Refused(Reason.UNDECODABLE, f"a slice of mode {image.mode}, not 8-bit")
                planes.append(np.asarray(image.convert("L")))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Refused(Reason.UNDECODABLE, f"a slice: {type(error).__name__}") from None
    if len({plane.shape for plane in planes}) > 1:
        sizes = sorted({plane.shape for plane in planes})
        raise Refused(Reason.MIXED_GEOMETRY, f"slices of {len(sizes)} sizes")
    return np.stack(planes)[::-1, ::-1, ::-1].transpose(2, 1, 0)
