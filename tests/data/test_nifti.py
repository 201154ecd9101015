"""NIfTI files as they are in the wild: each test writes the file and names the rule."""

import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from mg3d.data import nifti
from mg3d.data.nifti import RefusedNifti, load_nifti
from mg3d.ledger import Reason

SHAPE = (5, 6, 7)
VOXELS = np.arange(210, dtype=np.int16).reshape(SHAPE)
AFFINE = np.array([[2.0, 0, 0, -10], [0, 1.5, 0, -20], [0, 0, 3, -30], [0, 0, 0, 1]])


def image(
    voxels: np.ndarray = VOXELS,
    sform: np.ndarray | None = AFFINE,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    order: str = "<",
    scaling: tuple[float, float] = (1.0, 0.0),
    **fields: Any,
) -> bytes:
    """A NIfTI-1 file with these forms (None: not set; ``codes`` of sform and qform) and fields."""
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(*scaling)
    if sform is not None:
        header.set_sform(sform, codes[0])
    if qform is not None:
        header.set_qform(qform, codes[1])
    for name, value in fields.items():
        header[name] = value
    header["magic"], header["vox_offset"] = b"n+1", 352
    stored = voxels.astype(header.get_data_dtype(), copy=False)
    return header.binaryblock + bytes(4) + stored.tobytes(order="F")


def written(content: bytes, path: Path) -> Path:
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def refused(path: Path, reason: Reason, detail: str | None = None) -> None:
    with pytest.raises(RefusedNifti, match=detail) as caught:
        load_nifti(path)
    assert caught.value.reason == reason


def assert_plain(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> None:
    """What `image()` holds by default, in int16."""
    loaded, to_ras = load_nifti(path)
    assert loaded.dtype == np.int16
    assert loaded.dtype.isnative
    np.testing.assert_array_equal(loaded, voxels)
    np.testing.assert_allclose(to_ras, affine, atol=1e-4)


# What a file is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_the_content_says_whether_it_is_gzip(name: str, is_gzip: bool, tmp_path: Path) -> None:
    content = image()
    (tmp_path / name).write_bytes(gzip.compress(content) if is_gzip else content)
    assert_plain(tmp_path / name)


def test_gzip_in_several_members_and_with_a_tail(tmp_path: Path) -> None:
    content = image()
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]) + b"\0" * 600)
    assert_plain(path)


@pytest.mark.parametrize("is_gzip", [False, True])
@pytest.mark.parametrize("lost", [1, 30, 300])
def test_truncated(is_gzip: bool, lost: int, tmp_path: Path) -> None:
    content = image()
    path = tmp_path / "x.nii.gz"
    if is_gzip:
        content = gzip.compress(content)
        lost = min(lost, len(content) - 100)
    path.write_bytes(content[:-lost])
    refused(path, Reason.TRUNCATED)


def test_truncated_within_the_header(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(image()[:350])
    refused(path, Reason.TRUNCATED, "before its voxels")
    path.write_bytes(image()[:200])
    refused(path, Reason.UNREADABLE, "not a NIfTI")


def test_a_damaged_gzip_fails_its_checksum(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(image()))
    content[-6] ^= 255  # the CRC itself: the voxels are whole, which nobody can know
    (tmp_path / "x.nii.gz").write_bytes(content)
    refused(tmp_path / "x.nii.gz", Reason.CHECKSUM_MISMATCH)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_never_passes(seed: int, tmp_path: Path) -> None:
    content = bytearray(gzip.compress(image()))
    position = np.random.default_rng(seed).integers(10, len(content) - 8)
    content[position] ^= 1 << seed
    (tmp_path / "x.nii.gz").write_bytes(content)
    with pytest.raises(RefusedNifti):
        load_nifti(tmp_path / "x.nii.gz")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_any_header_is_read_or_refused(value: int, tmp_path: Path) -> None:
    """Each byte in turn: no other error, and never more memory than the file warrants."""
    path = tmp_path / "x.nii"
    outcomes = set()
    for position in range(352):
        content = bytearray(image(qform=AFFINE))
        content[position] = value
        path.write_bytes(content)
        try:
            voxels, affine = load_nifti(path)
        except RefusedNifti as error:
            outcomes.add(str(error.reason))
        else:
            assert voxels.size <= VOXELS.size
            assert np.isfinite(affine).all()
            outcomes.add("read")
    assert {"read", "unreadable"} < outcomes


def test_what_is_no_nifti(tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    for content in (b"", b"no image", gzip.compress(b"no image"), b"\0\5\x16\7" + b"\0" * 4092):
        path.write_bytes(content)  # the last is the ._ companion that macOS puts in archives
        refused(path, Reason.UNREADABLE, "not a NIfTI")
    refused(tmp_path / "absent.nii", Reason.UNREADABLE, "FileNotFoundError")
    nibabel.Nifti1Pair(VOXELS, AFFINE).to_filename(tmp_path / "y.hdr")
    refused(tmp_path / "y.hdr", Reason.UNREADABLE, r"\.hdr/\.img pair")
    nibabel.AnalyzeImage(VOXELS, AFFINE).to_filename(tmp_path / "z.hdr")
    refused(tmp_path / "z.hdr", Reason.UNREADABLE, "not a NIfTI")
    color = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(written(image(color), tmp_path / "c.nii"), Reason.UNREADABLE, "voxels of type")


def test_nifti_2(tmp_path: Path) -> None:
    nibabel.Nifti2Image(VOXELS, AFFINE).to_filename(tmp_path / "x.nii.gz")
    assert_plain(tmp_path / "x.nii.gz")


# Voxels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_big_endian(name: str, tmp_path: Path) -> None:
    path = written(image(order=">"), tmp_path / name)
    assert nibabel.load(path).header.endianness == ">"
    assert_plain(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("slope", [1.0, 0.5])
@pytest.mark.parametrize("order", ["<", ">"])
def test_other_types_as_nibabel_reads_them(
    dtype: type, slope: float, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "CHUNK_VOXELS", 64)
    content = image((VOXELS % 100).astype(dtype), order=order, scaling=(slope, -10.0))
    path = written(content, tmp_path / "x.nii.gz")
    loaded, _ = load_nifti(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, nibabel.load(path).get_fdata(dtype=np.float64))


def test_scaled_int16_is_float32(tmp_path: Path) -> None:
    loaded, _ = load_nifti(written(image(scaling=(1.0, -1024.0)), tmp_path / "x.nii"))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, VOXELS - 1024.0)


def test_float64_beyond_float32_is_infinite(tmp_path: Path) -> None:
    path = written(image(np.full(SHAPE, 1e300)), tmp_path / "x.nii")
    assert np.isinf(load_nifti(path)[0]).all()


def test_trailing_axes_of_one_are_dropped_and_a_series_refused(tmp_path: Path) -> None:
    assert_plain(written(image(VOXELS[..., None]), tmp_path / "x.nii"))
    assert_plain(written(image(VOXELS[..., None, None]), tmp_path / "y.nii.gz"))
    series = np.repeat(VOXELS[..., None], 2, axis=3)
    refused(written(image(series), tmp_path / "z.nii"), Reason.WRONG_SHAPE, "three axes")
    refused(written(image(VOXELS[0]), tmp_path / "w.nii"), Reason.WRONG_SHAPE, "three axes")


def test_a_header_cannot_ask_for_more_memory_than_a_volume_has(tmp_path: Path) -> None:
    content = bytearray(image())
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(content))
    refused(tmp_path / "x.nii.gz", Reason.TOO_LARGE, "32767")


def test_float64_needs_no_float64_copy(tmp_path: Path) -> None:
    """Peak: the float32 array (8 MiB) and chunks of the file; the file holds 16 MiB."""
    path = written(image(np.zeros((128, 128, 128))), tmp_path / "x.nii.gz")
    load_nifti(path)
    tracemalloc.start()
    loaded, _ = load_nifti(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert loaded.nbytes == 8 * 2**20
    assert peak <= loaded.nbytes + 40 * nifti.CHUNK_VOXELS


# Geometry ---------------------------------------------------------------------------------------


def test_forms_that_agree(tmp_path: Path) -> None:
    """A quaternion in float32 is never exact: 0.4 of the smallest voxel is 0.6 mm here."""
    off = AFFINE.copy()
    off[0, 3] += 0.6
    assert_plain(written(image(qform=off), tmp_path / "x.nii"))


def test_forms_that_disagree(tmp_path: Path) -> None:
    off = AFFINE.copy()
    off[0, 3] += 0.9  # 0.6 of the smallest voxel
    refused(written(image(qform=off), tmp_path / "x.nii"), Reason.AFFINES_DISAGREE, "0.6 voxels")
    mirrored = np.diag([-1.0, 1, 1, 1]) @ AFFINE
    refused(written(image(qform=mirrored), tmp_path / "y.nii"), Reason.AFFINES_DISAGREE)


def test_one_form_is_enough(tmp_path: Path) -> None:
    assert_plain(written(image(sform=None, qform=AFFINE), tmp_path / "q.nii"))
    assert_plain(written(image(), tmp_path / "s.nii"))


@pytest.mark.parametrize("template", nifti.TEMPLATES)
def test_template_space_is_not_the_patients_millimetres(template: int, tmp_path: Path) -> None:
    atlas = np.diag([1.1, 1.1, 1.1, 1.0])
    made = image(sform=atlas, qform=AFFINE, codes=(template, 1))
    assert_plain(written(made, tmp_path / "x.nii"))


def test_an_unusable_form_does_not_count(tmp_path: Path) -> None:
    zero = image(qform=AFFINE, srow_x=0, srow_y=0, srow_z=0, sform_code=1)
    assert_plain(written(zero, tmp_path / "x.nii"))
    neither = image(srow_x=0, sform_code=1)
    refused(written(neither, tmp_path / "y.nii"), Reason.BAD_AFFINE)
    not_a_number = image(srow_x=(np.nan, 0, 0, 0), sform_code=1)
    refused(written(not_a_number, tmp_path / "z.nii"), Reason.BAD_AFFINE)


def test_a_blank_header(tmp_path: Path) -> None:
    path = written(image(sform=None, pixdim=(1, 2.0, 1.5, 3.0, 1, 1, 1, 1)), tmp_path / "x.nii")
    refused(path, Reason.NO_AFFINE)
    voxels, affine = load_nifti(path, blank_header="pixdim")
    np.testing.assert_array_equal(voxels, VOXELS)
    np.testing.assert_allclose(affine, np.diag([2.0, 1.5, 3.0, 1.0]))
    no_sizes = image(sform=None, pixdim=(1, 0.0, 1.5, 3.0, 1, 1, 1, 1))
    with pytest.raises(RefusedNifti, match=r"implausible_spacing: 0 x 1\.5 x 3 mm"):
        load_nifti(written(no_sizes, tmp_path / "y.nii"), blank_header="pixdim")


@pytest.mark.parametrize(("code", "mm"), [(0, 1.0), (1, 1e3), (2, 1.0), (3, 1e-3)])
def test_units(code: int, mm: float, tmp_path: Path) -> None:
    """Unknown counts as mm; metres and micrometres are converted, origin included."""
    stored = np.vstack([AFFINE[:3] / mm, AFFINE[3]])
    made = image(sform=stored, qform=stored, xyzt_units=code + 8)  # 8: seconds
    assert_plain(written(made, tmp_path / "x.nii"))


def test_units_that_nobody_means(tmp_path: Path) -> None:
    metres = np.vstack([AFFINE[:3] / 1e3, AFFINE[3]])  # but the header says mm
    path = written(image(sform=metres, xyzt_units=2), tmp_path / "x.nii")
    refused(path, Reason.IMPLAUSIBLE_SPACING, r"0\.002 x 0\.0015 x 0\.003 mm")
    refused(written(image(xyzt_units=5), tmp_path / "y.nii"), Reason.BAD_AFFINE, "unit")


def test_a_sheared_affine_is_kept_and_a_collapsed_one_refused(tmp_path: Path) -> None:
    """Gantry tilt of 20 degrees moves each slice by tan(20°) of its step towards the front."""
    sheared = AFFINE.copy()
    sheared[1, 2] = 3 * np.tan(np.deg2rad(20))
    assert_plain(written(image(sform=sheared), tmp_path / "x.nii"), affine=sheared)
    collapsed = AFFINE.copy()
    collapsed[1, 2] = 3 * np.tan(np.deg2rad(70))
    refused(written(image(sform=collapsed), tmp_path / "y.nii"), Reason.BAD_AFFINE)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SAR", "PIL"])
def test_any_orientation_comes_out_as_ras(codes: str, tmp_path: Path) -> None:
    to = nibabel.orientations.axcodes2ornt(codes)
    ras = nibabel.orientations.axcodes2ornt("RAS")
    made = nibabel.Nifti1Image(VOXELS, AFFINE)
    turned = made.as_reoriented(nibabel.orientations.ornt_transform(ras, to))
    assert nibabel.aff2axcodes(turned.affine) == tuple(codes)
    turned.to_filename(tmp_path / "x.nii.gz")
    assert_plain(tmp_path / "x.nii.gz")


def test_itk_thinks_in_lps_and_the_file_is_still_ras(tmp_path: Path) -> None:
    """A point at LPS (10, 20, 30) mm is at RAS (-10, -20, 30)."""
    made = SimpleITK.GetImageFromArray(VOXELS.transpose(2, 1, 0))
    made.SetSpacing((2.0, 1.5, 3.0))
    made.SetOrigin((10.0, 20.0, 30.0))  # of voxel 0, which is the rightmost and frontmost... in LPS
    SimpleITK.WriteImage(made, str(tmp_path / "x.nii.gz"))
    voxels, affine = load_nifti(tmp_path / "x.nii.gz")
    # Indices grew towards left and back: turned round, voxel 0 is now the last, at its far end.
    np.testing.assert_array_equal(voxels, VOXELS[::-1, ::-1])
    np.testing.assert_allclose(affine[:3, 3], (-10 - 4 * 2.0, -20 - 5 * 1.5, 30), atol=1e-4)
