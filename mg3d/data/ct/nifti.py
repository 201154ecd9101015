"""A volume -> NIfTI-1."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from mg3d import paths


def write_nifti(volume: np.ndarray, affine: np.ndarray | None, path: Path) -> None:
    """Write ``volume`` [X, Y, Z] as NIfTI-1 in scanner millimetres; same input, same bytes.

    Without an affine there are no millimetres: neither qform nor sform is set.
    """
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume), affine)
    if affine is not None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code="scanner")
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3  # a quaternion cannot say so
        image.set_qform(affine, code="unknown" if sheared else "scanner")
    with paths.atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))
