"""A volume -> NIfTI-1."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np

from mg3d import paths

GZIP = 16 + zlib.MAX_WBITS


def write_nifti(volume: np.ndarray, affine: np.ndarray | None, path: Path) -> None:
    """Write ``volume`` [X, Y, Z] as NIfTI-1 in scanner millimetres; same input, same bytes.

    Compressed if ``path`` ends in .gz. Memory beside the volume: a slice. Without an affine there
    are no millimetres: neither qform nor sform is set.
    """
    image = nibabel.Nifti1Image(volume, affine)
    if affine is not None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code="scanner")
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3  # a quaternion cannot say so
        image.set_qform(affine, code="unknown" if sheared else "scanner")
    parts = _content(image, volume)
    with paths.atomic_write(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".gz":
            deflate = zlib.compressobj(1, wbits=GZIP)
            file.writelines(map(deflate.compress, parts))
            file.write(deflate.flush())
        else:
            file.writelines(parts)


def _content(image: nibabel.Nifti1Image, volume: np.ndarray) -> Iterator[memoryview | bytes]:
    """The header, no extensions, and the slices in the order of the file."""
    header = image.header.copy()
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 352
    yield header.binaryblock + bytes(4)
    for plane in volume.T:
        yield np.ascontiguousarray(plane).data.cast("B")
