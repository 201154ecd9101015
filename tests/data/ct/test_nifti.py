"""The file that nibabel would write, in its bytes, without copies of the volume."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mg3d.data.ct.nifti import write_nifti

SHEARED = np.array([[0.7, 0, 0, -5], [0, 0.7, 0.4, 3], [0, 0, 2, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", [None, np.diag([1.0, 2, 3, 1]), SHEARED], ids=str)
@pytest.mark.parametrize("turned", [False, True])
def test_same_bytes_as_nibabel(affine: np.ndarray | None, turned: bool, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(-1024, 3071, (31, 20, 11)).astype(np.int16)
    volume = volume[::-1].transpose(2, 0, 1) if turned else volume
    image = nibabel.Nifti1Image(volume, affine)
    if affine is not None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=0 if affine is SHEARED else 1)
    write_nifti(volume, affine, tmp_path / "ct.nii")
    assert (tmp_path / "ct.nii").read_bytes() == image.to_bytes()
    write_nifti(volume, affine, tmp_path / "ct.nii.gz")
    assert gzip.decompress((tmp_path / "ct.nii.gz").read_bytes()) == image.to_bytes()
