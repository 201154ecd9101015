"""Enhanced multi-frame CT: the volume that its single-frame slices give."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data.converters import as_ras, convert_dicom, dcm2niix, load, reasons, simpleitk
from mg3d.data.ct.header import read_header
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
Write = Callable[..., list[Path]]


@pytest.mark.parametrize("syntax", [None, "RLELossless", "JPEG2000Lossless"])
def test_frames_give_the_same_volume_as_slices_and_other_converters(
    syntax: str | None,
    tmp_path: Path,
    write_series: Write,
    merge_slices: Callable,
) -> None:
    hu = np.random.default_rng(0).integers(-1000, 1000, (8, 40, 32))
    files = write_series(tmp_path / "dicom", hu=hu)
    convert_dicom(tmp_path / "dicom", tmp_path / "slices", PARAMS)
    merged = merge_slices(files, tmp_path / "dicom/merged")
    if syntax:
        data = pydicom.dcmread(merged)
        data.compress(getattr(pydicom.uid, syntax))
        data.save_as(merged)
    convert_dicom(tmp_path / "dicom", tmp_path / "frames", PARAMS)
    assert reasons(tmp_path / "frames") == {"used": 1}
    ours = load(tmp_path / "frames")
    assert ours.to_bytes() == load(tmp_path / "slices").to_bytes()
    for theirs in (simpleitk([merged]), dcm2niix(tmp_path / "dicom", tmp_path / "dcm2niix")):
        array, affine = as_ras(theirs)
        np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.rint(array))
        np.testing.assert_allclose(ours.affine, affine, atol=1e-3)


def test_frames_come_in_any_order_with_their_own_slope(
    tmp_path: Path, write_series: Write, edit_slice: Callable, merge_slices: Callable
) -> None:
    """SimpleITK stacks frames as stored and takes one slope for all: position is right."""
    hu = np.repeat(np.arange(0, 500, 100), 16).reshape(5, 4, 4)
    files = write_series(tmp_path / "dicom", hu=hu)
    edit_slice(files[3], RescaleIntercept=-1014.0)
    merge_slices([files[i] for i in (2, 0, 4, 1, 3)], tmp_path / "dicom/merged")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert np.asanyarray(load(tmp_path / "out").dataobj)[0, 0].tolist() == [0, 100, 200, 310, 400]
    theirs = np.asanyarray(as_ras(simpleitk([tmp_path / "dicom/merged"]))[0])
    assert theirs[0, 0].tolist() != [0, 100, 200, 310, 400]


def test_two_acquisitions_in_one_file_are_divided(
    tmp_path: Path, write_series: Write, edit_slice: Callable, merge_slices: Callable
) -> None:
    files = []
    for phase in (1, 2):
        hu = np.full((4, 4, 4), 100 * phase)
        for path in write_series(tmp_path / "dicom", hu=hu, prefix=f"{phase}-"):
            edit_slice(path, AcquisitionNumber=phase)
            files.append(path)
    merge_slices(files, tmp_path / "dicom/merged")
    ledger = convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert [entry.reason for entry in ledger.entries] == [None, "not_chosen"]
    assert [entry.count for entry in ledger.entries] == [1, 0]  # one file
    assert np.unique(np.asanyarray(load(tmp_path / "out").dataobj)).tolist() == [100]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("PerFrameFunctionalGroupsSequence", "multi_frame"),
        ("SharedFunctionalGroupsSequence", "missing_tag"),
    ],
)
def test_without_functional_groups_it_is_refused(
    lost: str, reason: str, tmp_path: Path, write_series: Write, merge_slices: Callable
) -> None:
    merged = merge_slices(write_series(tmp_path / "dicom"), tmp_path / "dicom/merged")
    data = pydicom.dcmread(merged)
    delattr(data, lost)
    data.save_as(merged)
    with pytest.raises(ValueError, match=reason):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)


def test_a_count_of_frames_that_is_not_there_is_refused(
    tmp_path: Path, write_series: Write, merge_slices: Callable
) -> None:
    merged = merge_slices(write_series(tmp_path / "dicom"), tmp_path / "dicom/merged")
    assert len(read_header(merged).slices) == 8
    data = pydicom.dcmread(merged)
    data.NumberOfFrames = 2_000_000_000
    data.save_as(merged)
    with pytest.raises(ValueError, match="oversized"):
        convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
