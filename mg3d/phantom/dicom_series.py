"""CT Image Storage series as a PACS exports them (DICOM PS3.3 A.3, C.7.6.2, C.8.2.1)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from mg3d.phantom.canvas import Vector
from mg3d.phantom.case import Case, dicom_date
from mg3d.phantom.draws import Draws
from mg3d.phantom.scan import Scan
from mg3d.phantom.wording import HOSPITALS

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
# Ours, so that files do not change with the version of pydicom.
IMPLEMENTATION_UID = UID("2.25.176385829418349236712386541927365012345")
IMPLEMENTATION_NAME = "MG3D_PHANTOM_1"
MANUFACTURERS = ("SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "TOSHIBA")
PADDING_HU = -2000


@dataclass(frozen=True)
class Storage:
    """How HU become stored values: stored = (HU - intercept) / slope.

    ``intercepts`` are used in turn by the slices: a rescale may differ within a series.
    """

    slope: float = 1.0
    intercepts: tuple[int, ...] = (-1024,)
    is_signed: bool = False
    bits: int = 16
    pads_corners: bool = False


STORAGES = (
    Storage(bits=12),
    Storage(intercepts=(0,), is_signed=True, pads_corners=True),
    Storage(slope=0.5),
    Storage(intercepts=(-1024, -1100)),
    Storage(intercepts=(-1000,), is_signed=True),
)


@dataclass(frozen=True)
class Series:
    """What the files of one series share besides the patient."""

    number: int
    description: str
    storage: Storage = STORAGES[0]
    extension: str = ""
    falls: bool = False  # InstanceNumber 1 is at the head


def study_header(case: Case, accession: str) -> Dataset:
    """Patient and study modules, with the identifying fields of a real export."""
    draws = case.draws.child("header")
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = dicom_date(
        case.study_date
    )
    clock = f"{draws.integer(7, 18):02d}{draws.integer(0, 59):02d}{draws.integer(0, 59):02d}"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = clock
    data.AccessionNumber = accession
    data.Manufacturer = draws.choice(MANUFACTURERS)
    data.InstitutionName = draws.choice(HOSPITALS)
    data.ReferringPhysicianName = f"{case.person.physician}^Dr"
    data.StudyDescription = "CT Thorax"
    data.ManufacturerModelName = "Phantom"
    data.PatientName = f"{case.person.family_name}^{case.person.given_name}"
    data.PatientID = case.person.patient_id
    data.PatientBirthDate = dicom_date(case.birth_date)
    data.PatientSex = case.person.sex
    data.PatientAge = f"{case.person.age:03d}Y"
    data.StudyInstanceUID = draws.uid()
    data.StudyID = draws.digits(4)
    data.FrameOfReferenceUID = draws.uid()
    data.PositionReferenceIndicator = ""
    data.PatientPosition = "HFS"
    return data


def make_slices(
    scan: Scan, header: Dataset, series: Series, offset: Vector, draws: Draws
) -> list[FileDataset]:
    """One CT image per slice, from the feet up, with every Type 1 attribute of the CT image IOD.

    ``offset`` (LPS mm) is where the patient lies on the table.
    """
    grid = scan.grid.moved(offset)
    hu = scan.hu
    storage = series.storage
    depth, height, width = hu.shape
    if storage.pads_corners:
        rows = np.arange(height)[:, None] * 2 - (height - 1)
        columns = np.arange(width)[None, :] * 2 - (width - 1)
        outside = rows * rows + columns * columns > max(height, width) ** 2 * 5 // 4
        hu = np.where(outside, np.int16(PADDING_HU), hu)
    series_uid = draws.uid()
    slices = []
    for index in range(depth):
        data = FileDataset("", {}, preamble=b"\x00" * 128)
        for element in header:  # copies: a slice's header may be spoilt later
            data[element.tag] = DataElement(element.tag, element.VR, element.value)
        intercept = storage.intercepts[index % len(storage.intercepts)]
        stored = (hu[index].astype(np.int32) - intercept) * round(1.0 / storage.slope)
        limit = (1 << (storage.bits - storage.is_signed)) - 1
        stored = np.clip(stored, -limit - 1 if storage.is_signed else 0, limit)
        data.SOPClassUID = CT_IMAGE_STORAGE
        data.SOPInstanceUID = draws.uid()
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Modality = "CT"
        data.SeriesDescription = series.description
        data.BodyPartExamined = "CHEST"
        data.SliceThickness = f"{grid.spacing_mm[0]:.3f}"
        data.KVP = "120"
        data.ConvolutionKernel = "B60f" if scan.kernel == "sharp" else "B30f"
        data.SeriesInstanceUID = series_uid
        data.SeriesNumber = series.number
        data.AcquisitionNumber = 1
        data.InstanceNumber = depth - index if series.falls else index + 1
        position = grid.position((index, 0, 0))
        data.ImagePositionPatient = [f"{value:.6f}" for value in position]
        data.ImageOrientationPatient = [f"{value:.9f}" for value in (*grid.right, *grid.down)]
        data.SliceLocation = f"{position[2]:.3f}"
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.Rows, data.Columns = height, width
        data.PixelSpacing = [f"{grid.spacing_mm[1]:.6f}", f"{grid.spacing_mm[2]:.6f}"]
        data.BitsAllocated = 16
        data.BitsStored = storage.bits
        data.HighBit = storage.bits - 1
        data.PixelRepresentation = int(storage.is_signed)
        if storage.pads_corners:
            data.PixelPaddingValue = PADDING_HU - intercept
        data.WindowCenter, data.WindowWidth = "-600", "1500"
        data.RescaleIntercept = str(intercept)
        data.RescaleSlope = f"{storage.slope:g}"
        data.RescaleType = "HU"
        data.PixelData = stored.astype("<i2" if storage.is_signed else "<u2").tobytes()
        slices.append(data)
    return slices


def write_file(path: Path, data: FileDataset, syntax: UID = ExplicitVRLittleEndian) -> None:
    """Write one data set with our implementation UID; ``syntax`` only names the encoding."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = IMPLEMENTATION_NAME
    data.file_meta = meta
    data.save_as(path, enforce_file_format=True)


def write_slices(
    folder: Path, slices: list[FileDataset], draws: Draws, extension: str = ""
) -> list[Path]:
    """Write a series under opaque names whose order says nothing; returns the paths by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    names = draws.shuffled([f"{draws.integer(0, 0xFFFF):04X}{n:04X}" for n in range(len(slices))])
    paths = [folder / f"{name}{extension}" for name in names]
    for path, data in zip(paths, slices, strict=True):
        write_file(path, data)
    return paths
