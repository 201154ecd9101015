"""Compressed copies of a slice, and multi-frame files, written for the tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import gdcm
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage


def encode(path: Path, syntax: str) -> None:
    """Rewrite a slice in a transfer syntax, named as GDCM names it."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    data = pydicom.dcmread(path)
    del data.StudyTime  # GDCM's clock: dcm2niix would see as many studies as slices
    data.save_as(path)


def one(**tags: object) -> list[Dataset]:
    """A sequence of one item."""
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def merge(files: Sequence[Path], target: Path) -> Path:
    """Slices -> one enhanced CT file, in the order given; the orientation in the shared groups."""
    slices = [pydicom.dcmread(path) for path in files]
    data = pydicom.dcmread(files[0])
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    data.NumberOfFrames = len(slices)
    shared = Dataset()
    shared.PlaneOrientationSequence = one(ImageOrientationPatient=data.ImageOrientationPatient)
    shared.PixelMeasuresSequence = one(PixelSpacing=data.PixelSpacing, SliceThickness=99.0)
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    for index, part in enumerate(slices):
        group = Dataset()
        group.PlanePositionSequence = one(ImagePositionPatient=part.ImagePositionPatient)
        group.PixelValueTransformationSequence = one(
            RescaleSlope=part.RescaleSlope, RescaleIntercept=part.RescaleIntercept, RescaleType="HU"
        )
        group.FrameContentSequence = one(
            FrameAcquisitionNumber=int(part.get("AcquisitionNumber") or 1),
            StackID="1",
            InStackPositionNumber=index + 1,
            DimensionIndexValues=[1, index + 1],
        )
        data.PerFrameFunctionalGroupsSequence.append(group)
    for name in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
        *("RescaleSlope", "RescaleIntercept"),
    ):
        delattr(data, name)
    data.PixelData = b"".join(part.PixelData for part in slices)
    data.save_as(target)
    for path in files:
        path.unlink()
    return target


@pytest.fixture
def encode_slice() -> Callable[[Path, str], None]:
    return encode


@pytest.fixture
def merge_slices() -> Callable[[Sequence[Path], Path], Path]:
    return merge
