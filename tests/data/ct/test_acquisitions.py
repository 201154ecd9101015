"""Positions that occur twice: copies, acquisitions of their own, or a contradiction."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.converters import convert_dicom, load, reasons
from mg3d.data.identity import pseudonym
from mg3d.params import DicomVolumes

PARAMS = DicomVolumes(min_slices=4)
Write = Callable[..., list[Path]]


def test_identical_second_slices_are_dropped_and_counted(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """Same pixels at the same place under new instance UIDs, as a second export writes them."""
    write_series(tmp_path / "dicom")
    copies = write_series(tmp_path / "dicom", prefix="again-")
    for index, path in enumerate(copies):
        edit_slice(path, SOPInstanceUID=f"9.9.{index}")
    for path in copies[6:]:
        path.unlink()
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "duplicate_slice": 6}
    assert load(tmp_path / "out").shape == (12, 10, 8)


@pytest.mark.parametrize(
    "change", [{"RescaleIntercept": -1023.0}, {"PixelData": b"\1\0" * 120}], ids=["hu", "pixels"]
)
def test_contradictory_second_slices_are_quarantined(
    change: dict, tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    write_series(tmp_path / "dicom")
    other, *rest = write_series(tmp_path / "dicom", prefix="again-")
    edit_slice(other, SOPInstanceUID="9.9.1", **change)
    for path in rest:
        path.unlink()
    write_series(tmp_path / "dicom", uid="2.1", study="2", patient="P2", prefix="good-")
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8, "duplicate_position": 9}


@pytest.mark.parametrize("by", ["AcquisitionNumber", "InstanceNumber"])
def test_two_acquisitions_in_one_series_are_two_series(
    by: str, tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    """The longer one is used; with equal lengths it is the first."""
    for phase in (1, 2):
        hu = np.full((8, 4, 4), 100 * phase)
        files = write_series(tmp_path / "dicom", hu=hu, prefix=f"{phase}-")
        for index, path in enumerate(files):
            edit_slice(path, SOPInstanceUID=f"9.{phase}.{index}", InstanceNumber=8 * phase + index)
            if by == "AcquisitionNumber":
                edit_slice(path, AcquisitionNumber=phase)
                if phase == 1 and index == 7:
                    path.unlink()
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    shorter = 7 if by == "AcquisitionNumber" else 8
    assert reasons(tmp_path / "out") == {"used": 8, "not_chosen": shorter}
    (used,) = pd.read_parquet(tmp_path / "out/manifest.parquet")["series_id"]
    number = 2 if by == "AcquisitionNumber" else 1
    assert used == f"{pseudonym('series', '1.2.3.1')}.{number}"
    assert np.unique(np.asanyarray(load(tmp_path / "out").dataobj)).tolist() == [100 * number]


def test_step_and_shoot_is_one_acquisition(
    tmp_path: Path, write_series: Write, edit_slice: Callable
) -> None:
    for number, path in enumerate(write_series(tmp_path / "dicom"), 1):
        edit_slice(path, AcquisitionNumber=number)
    convert_dicom(tmp_path / "dicom", tmp_path / "out", PARAMS)
    assert reasons(tmp_path / "out") == {"used": 8}
