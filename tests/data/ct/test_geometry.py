"""Tilted gantries, gaps and mixed planes: recognised from positions, resampled or refused."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.converters import convert_dicom, dcm2niix, load, reasons, simpleitk
from mg3d.data.ct.resample import to_grid
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
Write = Callable[..., list[Path]]
SLOPE_HU_PER_MM = 8


def tilted(
    folder: Path, write_series: Write, edit_slice: Callable, shift_mm: float, **tags: object
) -> list[Path]:
    """Slices 3 mm apart, each ``shift_mm`` further to the back; HU = 8 x (LPS y in mm)."""
    y = 20 + shift_mm * np.arange(8)[:, None] + 2 * np.arange(20)  # [slices, rows]
    hu = np.repeat(SLOPE_HU_PER_MM * y[:, :, None], 6, axis=2)
    stored = {"PixelRepresentation": 1, "intercept": 0.0}
    files = write_series(folder, hu=hu, **(stored | tags))
    for index, path in enumerate(files):
        edit_slice(path, ImagePositionPatient=[-10.0, 20 + shift_mm * index, -30.0 + 3 * index])
    return files


def error_hu(image: nibabel.Nifti1Image) -> np.ndarray:
    """|HU - 8 x (-y)| of each voxel that is no padding, y by the image's own affine."""
    array = np.asanyarray(image.dataobj).astype(float)
    voxels = np.indices(array.shape).reshape(3, -1)
    y = (image.affine[:3, :3] @ voxels + image.affine[:3, 3:])[1].reshape(array.shape)
    return np.abs(array + SLOPE_HU_PER_MM * y)[array > 0]


@pytest.mark.parametrize("shift_mm", [0.5, -0.5, 2.0, -1.3])
def test_a_tilted_gantry_is_sheared_back(
    shift_mm: float, tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """A linear ramp survives linear interpolation: each voxel is right where it says it is."""
    tilted(tmp_path / "dicom", write_series, edit_slice, shift_mm)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    image = load(tmp_path / "out")
    np.testing.assert_allclose(np.abs(image.affine[:3, :3]), np.diag([1.5, 2, 3]), atol=1e-6)
    assert int(image.header["qform_code"]) == 1
    # 20 rows of 2 mm and 7 shifts need this many rows; nothing is cut off
    assert image.shape == (6, 20 + int(np.ceil(7 * abs(shift_mm) / 2)), 8)
    wrong = error_hu(image)
    # what a shift leaves of a slice's first and last row is mixed with air
    fits = wrong <= 1  # rounded twice
    assert wrong.size - fits.sum() <= 2 * 6 * 8
    assert fits.sum() >= 18 * 6 * 8


def test_other_converters_leave_a_tilt_in_unless_the_header_field_says_so(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """SimpleITK and dcm2niix stack the slices upright: their far end is 3.5 mm = 28 HU off.

    We are right: HU here are a function of the patient's y, and position says where y is.
    """
    files = tilted(tmp_path / "dicom", write_series, edit_slice, 0.5)
    for theirs in (simpleitk(files), dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")):
        assert error_hu(as_image(theirs)).max() == pytest.approx(28, abs=0.1)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert np.median(error_hu(load(tmp_path / "out"))) == 0


def as_image(image: nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, dtype=float)


def test_dcm2niix_corrects_to_the_same_voxels_when_the_header_field_agrees(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """It enlarges by whole pixels about the middle slice, so its grid is a quarter pixel off.

    We are right: 0 HU of error. A quarter of a 2 mm pixel is 4 HU.
    """
    tags = {"GantryDetectorTilt": -9.4623, "PatientPosition": "HFS"}
    files = tilted(tmp_path / "dicom", write_series, edit_slice, 0.5, **tags)
    for number, path in enumerate(files, 1):
        edit_slice(path, InstanceNumber=number)
    dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")
    theirs = nibabel.load(tmp_path / "dcm2niix/it_Tilt_1.nii")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    ours = load(tmp_path / "out")
    assert ours.shape == theirs.shape
    assert np.median(error_hu(theirs)) == 4
    assert np.median(error_hu(ours)) == 0


@pytest.mark.parametrize(
    ("policy", "outcome"), [("keep", {"used": 8}), ("quarantine", {"gantry_tilt": 8})]
)
def test_a_tilt_can_be_kept_or_quarantined(
    policy: str, outcome: dict, tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    tilted(tmp_path / "dicom", write_series, edit_slice, 0.5)
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="straight")
    params = PARAMS.model_copy(update={"gantry_tilt": policy})
    convert_dicom(tmp_path / "dicom", tmp_path / "out", params)
    assert reasons(tmp_path / "out") == {"used": 8 + outcome.get("used", 0)} | {
        name: count for name, count in outcome.items() if name != "used"
    }
    if policy == "keep":
        np.testing.assert_allclose(load(tmp_path / "out").affine[:3, 2], (0, -0.5, 3), atol=1e-6)


def test_positions_rounded_to_a_tenth_are_no_tilt(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    for index, path in enumerate(write_series(tmp_path / "dicom")):
        edit_slice(path, ImagePositionPatient=[-10.0, 20 + 0.1 * (index % 2), -30.0 + 3 * index])
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert load(tmp_path / "out").shape == (12, 10, 8)


def with_depths(
    folder: Path, depths: list[float], write_series: Write, edit_slice: Callable
) -> None:
    """Slices at ``depths`` mm whose HU is ten times the depth; one straight series beside it."""
    hu = np.repeat(10 * np.array(depths), 16).reshape(-1, 4, 4)
    for depth, path in zip(depths, write_series(folder, hu=hu), strict=True):
        edit_slice(path, ImagePositionPatient=[-10.0, 20.0, depth])
    write_series(folder, uid="2.1", study="2", patient="P2", prefix="straight")


INTERPOLATE = PARAMS.model_copy(update={"gap_policy": "interpolate"})


@pytest.mark.parametrize(
    ("depths", "reason", "filled"),
    [
        # one and two slices missing: the others keep their values
        ([0, 2, 4, 8, 10, 12], "missing_slice", [0, 20, 40, 60, 80, 100, 120]),
        ([0, 2, 4, 10, 12, 14, 16], "missing_slice", [0, 20, 40, 60, 80, 100, 120, 140, 160]),
        # no multiple of the typical 2 mm: resampled every 2 mm
        ([0, 2, 4, 7, 9, 11], "variable_spacing", [0, 20, 40, 60, 80, 100]),
        ([0, 1, 2, 4, 6, 8], "variable_spacing", [0, 20, 40, 60, 80]),
    ],
)
def test_gaps_are_quarantined_by_default_and_interpolated_on_request(
    depths: list[float],
    reason: str,
    filled: list[int],
    tmp_path: Path,
    write_series: Write,
    edit_slice: Callable,
) -> None:
    with_depths(tmp_path / "dicom", depths, write_series, edit_slice)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {reason: len(depths), "used": 8}
    convert_dicom(tmp_path / "dicom", tmp_path / "out", INTERPOLATE)
    image = load(tmp_path / "out")
    assert np.asanyarray(image.dataobj)[0, 0].tolist() == filled
    np.testing.assert_allclose(image.affine[:3, 2], (0, 0, 2), atol=1e-6)


def test_a_wide_gap_is_never_interpolated(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    with_depths(tmp_path / "dicom", [0, 2, 4, 12, 14, 16], write_series, edit_slice)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", INTERPOLATE)
    assert reasons(tmp_path / "out") == {"missing_slice": 6, "used": 8}


def test_two_planes_in_one_series_are_refused(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    files = write_series(tmp_path / "dicom")
    edit_slice(files[3], ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6])
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="straight")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"mixed_orientation": 8, "used": 8}


def test_shifts_and_new_slices_by_hand() -> None:
    volume = np.zeros((2, 1, 2), np.int16)
    volume[:, 0, 0], volume[:, 0, 1] = (100, 200), (300, 500)
    # slice 1 lies 1.5 columns to the right and two steps above slice 0
    origins = np.array([[0.0, 0, 0], [1.5, 0, 2]])
    grid = to_grid(volume, origins, (4, 1, 3), fill=-1000)
    assert grid[:, 0, 0].tolist() == [100, 200, -1000, -1000]
    assert grid[:, 0, 2].tolist() == [-1000, -350, 400, -250]
    assert grid[:, 0, 1].tolist() == [-450, -75, -300, -625]
