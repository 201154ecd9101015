"""DICOM validity, read with two independent readers."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from mg3d.phantom.anatomy import SIGN
from mg3d.phantom.case import draw_case
from mg3d.phantom.dicom_series import (
    PADDING_HU,
    STORAGES,
    Series,
    Storage,
    make_slices,
    study_header,
    write_slices,
)
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import Finding
from mg3d.phantom.scan import Scan, acquire, draw_grid

OFFSET = (12.5, -150.0, -421.5)
# Type 1 attributes of the CT Image IOD's mandatory modules (PS3.3 A.3.3) for an axial image.
TYPE_1 = """
SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality FrameOfReferenceUID
ImageType SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit
PixelRepresentation PixelSpacing ImageOrientationPatient ImagePositionPatient RescaleIntercept
RescaleSlope PixelData
"""
# Type 2: present, may be empty.
TYPE_2 = """
PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
AccessionNumber SeriesNumber PositionReferenceIndicator Manufacturer AcquisitionNumber
InstanceNumber SliceThickness KVP
"""


def example(
    folder: Path, storage: Storage = STORAGES[0], oblique: bool = False, *findings: Finding
) -> tuple[Scan, list[Path]]:
    draws = Draws(0, "dicom")
    case = draw_case(draws, draws.child("study"), 7, findings)
    grid = draw_grid(case.anatomy, (12, 30, 36), draws.child("grid"), oblique, 1.15)
    scan = acquire(case.anatomy, case.findings, grid, case.draws, "soft")
    header = study_header(case, "A123")
    slices = make_slices(scan, header, Series(1, "Thorax", storage, falls=True), OFFSET, draws)
    return scan, write_slices(folder, slices, draws)


def read_itk(paths: list[Path]) -> SimpleITK.Image:
    return SimpleITK.ReadImage(list(map(str, paths)))


def test_mandatory_attributes(tmp_path: Path) -> None:
    _, paths = example(tmp_path)
    instances, numbers = set(), []
    for path in paths:
        data = pydicom.dcmread(path)
        for name in TYPE_1.split():
            assert data.get(name) not in (None, "", []), name
        for name in TYPE_2.split():
            assert name in data, name
        assert data.SOPClassUID == pydicom.uid.CTImageStorage
        assert data.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert list(data.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
        assert data.PatientPosition == "HFS"
        assert len(data.PixelData) == data.Rows * data.Columns * 2
        for uid in (data.SOPInstanceUID, data.SeriesInstanceUID, data.StudyInstanceUID):
            assert pydicom.uid.UID(uid).is_valid
        instances.add(data.SOPInstanceUID)
        numbers.append(int(data.InstanceNumber))
    assert len(instances) == len(paths)
    assert numbers == list(range(len(paths), 0, -1))
    assert [path.name for path in paths] != sorted(path.name for path in paths)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage_gives_the_same_hu(storage: Storage, tmp_path: Path) -> None:
    scan, paths = example(tmp_path, storage)
    for hu, path in zip(scan.hu, paths, strict=True):
        data = pydicom.dcmread(path)
        found = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        kept = found != PADDING_HU
        np.testing.assert_array_equal(found[kept], hu[kept])
        assert kept.all() != storage.pads_corners
        if storage.pads_corners:
            assert data.PixelPaddingValue == PADDING_HU - float(data.RescaleIntercept)


@pytest.mark.parametrize("oblique", [False, True])
def test_geometry_against_itk(oblique: bool, tmp_path: Path) -> None:
    scan, paths = example(tmp_path, STORAGES[0], oblique)
    image = read_itk(paths)
    assert image.GetSpacing() == pytest.approx(tuple(scan.grid.spacing_mm[::-1]), abs=1e-4)
    moved = scan.grid.moved(OFFSET)
    for index in ((0, 0, 0), (11, 29, 35), (4, 9, 20)):
        found = image.TransformIndexToPhysicalPoint(index[::-1])
        assert found == pytest.approx(moved.position(index), abs=1e-3)
    assert (image.GetDirection() != (1, 0, 0, 0, 1, 0, 0, 0, 1)) == oblique
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), scan.hu)


@pytest.mark.parametrize("side", ["left", "right"])
def test_effusion_is_on_its_side_in_lps(side: str, tmp_path: Path) -> None:
    """From pixels and headers alone, as a reader sees it: a left effusion is at +x."""
    effusion = Finding("pleural_effusion", side, severity=2)
    _, with_it = example(tmp_path / "sick", STORAGES[2], False, effusion)
    _, without = example(tmp_path / "well", STORAGES[2])
    sick, well = (read_itk(paths) for paths in (with_it, without))
    change = SimpleITK.GetArrayFromImage(sick) - SimpleITK.GetArrayFromImage(well) > 300
    points = [
        sick.TransformIndexToPhysicalPoint(tuple(map(int, index[::-1])))
        for index in np.argwhere(change)
    ]
    assert len(points) > 200
    assert np.sign(np.mean(points, 0)[0] - OFFSET[0]) == SIGN[side]
