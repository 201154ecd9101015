import gzip
import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from mg3d.phantom.canvas import Grid
from mg3d.phantom.encoders import gzip_stored, nifti, write_jpeg, write_mha, write_nifti_gz

GRID = Grid((5, 6, 7), (5.5, 3.25, 2.5), (-40.0, -30.5, 12.25))
VOXELS = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7) - 100


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 200_000])
def test_stored_gzip_is_read_by_gzip(size: int) -> None:
    content = np.arange(size, dtype=np.uint32).astype(np.uint8).tobytes()
    packed = gzip_stored(content)
    assert gzip.decompress(packed) == content
    assert len(packed) == size + 18 + 5 * max(1, -(-size // 65535))
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        assert stream.read(10) == content[:10]
        assert stream.mtime in (0, None)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAS"])
def test_nifti_against_nibabel_and_itk(orientation: str, tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    write_nifti_gz(path, VOXELS, GRID, orientation)
    image = nibabel.load(path)
    assert "".join(nibabel.aff2axcodes(image.affine)) == orientation
    assert image.header.get_zooms() == pytest.approx((2.5, 3.25, 5.5))
    assert image.get_data_dtype() == np.int16
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-5)
    # Each voxel's world position (RAS) is our LPS position with x and y negated.
    data = np.asarray(image.dataobj)
    for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
        x, y, z = GRID.position(index)
        found = nibabel.affines.apply_affine(np.linalg.inv(image.affine), (-x, -y, z))
        assert data[tuple(np.rint(found).astype(int))] == VOXELS[index]
    itk = SimpleITK.ReadImage(str(path))
    for index in ((0, 0, 0), (4, 5, 6), (1, 2, 3)):
        assert itk[itk.TransformPhysicalPointToIndex(GRID.position(index))] == VOXELS[index]


def test_nifti_masks_are_uint8() -> None:
    assert nibabel.Nifti1Image.from_bytes(
        nifti(VOXELS.astype(np.uint8), GRID)
    ).get_data_dtype() == (np.uint8)


def test_mha_against_itk(tmp_path: Path) -> None:
    path = tmp_path / "7.mha"
    write_mha(path, VOXELS, GRID, {"PatientAge": "065Y", "PatientSex": "F"})
    image = SimpleITK.ReadImage(str(path))
    assert image.GetMetaData("PatientAge") == "065Y"
    assert image.GetMetaData("PatientSex") == "F"
    assert image.GetSpacing() == pytest.approx((2.5, 3.25, 5.5))
    assert image.GetOrigin() == pytest.approx(GRID.origin_mm)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), VOXELS)


def test_jpeg_is_grey_and_close(tmp_path: Path) -> None:
    from PIL import Image

    ramp = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    write_jpeg(tmp_path / "1.jpg", ramp)
    with Image.open(tmp_path / "1.jpg") as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image).astype(int) - ramp).max() <= 4
