"""Tiny but valid CT series, written as a scanner would, for the tests of the data stages."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def oblique(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Row and column directions of slices turned about the x axis, then a little about z."""
    a, b = np.deg2rad(degrees), np.deg2rad(degrees / 2)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    turned = about_z @ about_x
    return turned[:, 0], turned[:, 1]


def write_ct_series(
    folder: Path,
    *,
    uid: str = "1.2.3.1",
    study: str = "1.2.3",
    patient: str = "P1",
    accession: str = "A1",
    hu: np.ndarray | None = None,
    directions: Sequence[Sequence[float] | np.ndarray] = AXIAL,
    spacing: tuple[float, float] = (2.0, 1.5),
    step_mm: float = 3.0,
    origin: tuple[float, float, float] = (-10.0, 20.0, -30.0),
    slope: float = 1.0,
    intercept: float = -1024.0,
    prefix: str = "",
    seed: int = 0,
    **tags: object,
) -> list[Path]:
    """Write ``hu`` [slices, rows, columns] as one CT series; files in shuffled order.

    Returns the paths in slice order. ``tags`` override any attribute of every slice.
    """
    rng = np.random.default_rng(seed)
    if hu is None:
        hu = rng.integers(-1000, 1000, (8, 10, 12))
    row, column = (np.asarray(direction, float) for direction in directions)
    normal = np.cross(row, column)
    names = rng.permutation(len(hu))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, values in enumerate(hu):
        data = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{index + 1}"
        data.SeriesInstanceUID, data.StudyInstanceUID = uid, study
        data.PatientID, data.PatientName, data.AccessionNumber = patient, "DOE^JANE", accession
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.InstanceNumber = int(names[index]) + 1  # on purpose not the geometric order
        data.SliceThickness = 99.0  # on purpose wrong
        position = np.asarray(origin) + index * step_mm * normal
        data.ImagePositionPatient = [f"{value:.10g}"[:16] for value in position]
        data.ImageOrientationPatient = [f"{value:.10g}"[:16] for value in (*row, *column)]
        data.PixelSpacing = list(spacing)
        data.Rows, data.Columns = values.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = slope, intercept
        stored = np.rint((values - intercept) / slope).astype(np.uint16)
        data.PixelData = stored.tobytes()
        for name, value in tags.items():
            if value is None:
                delattr(data, name)
            else:
                setattr(data, name, value)
        path = folder / f"{prefix}{names[index]:03d}.bin"
        data.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def edit(path: Path, **tags: object) -> None:
    """Change attributes of one written slice."""
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


@pytest.fixture
def write_series() -> Callable[..., list[Path]]:
    return write_ct_series


@pytest.fixture
def edit_slice() -> Callable[..., None]:
    return edit


@pytest.fixture
def oblique_directions() -> Callable[[float], tuple[np.ndarray, np.ndarray]]:
    return oblique
