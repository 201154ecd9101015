"""A DICOM folder or a NIfTI file -> studies a model may be asked about, or the reason why not.

The readers and checks are those of the training data (`mg3d.data`). Orientation is not refused but
set right: axes are reordered and flipped to the closest of R, A, S. Refused are files without
spacing or direction, voxels that are no HU, and volumes that show no chest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from mg3d.data import dicom
from mg3d.data.ct.coverage import lung_mm
from mg3d.data.ct.refused import Refused
from mg3d.data.hounsfield import problem
from mg3d.data.identity import pseudonym
from mg3d.data.nifti import load_nifti
from mg3d.fingerprint import file_sha256
from mg3d.ledger import Ledger, Reason
from mg3d.params import DicomVolumes

PLACE_COLUMNS = ("coordX", "coordY", "coordZ")


@dataclass(frozen=True)
class Admission:
    """What a volume must be: a CT or another modality, and how much lung it must show."""

    is_ct: bool = True
    min_lung_mm: float | None = None


@dataclass(frozen=True)
class Study:
    """One volume (X, Y, Z) in closest RAS with its affine to RAS mm, and where it came from.

    ``files`` are the DICOM files of its series; ``stored_affine`` that of a NIfTI file as it stores
    its voxels. ``places`` [N, 3] are candidates in LPS mm, where a task asks about places.
    """

    study_id: str
    volume: np.ndarray
    affine: np.ndarray
    files: tuple[Path, ...] = ()
    stored_affine: np.ndarray | None = None
    places: np.ndarray | None = None


def read_studies(path: Path, admission: Admission) -> list[Study]:
    """The studies under a folder of DICOM files, or the one of a NIfTI file.

    Raises Refused, of a folder with the most frequent reason.
    """
    if path.is_dir():
        return _read_dicom(path, admission)
    if not path.is_file():
        raise Refused(Reason.UNREADABLE, "no such NIfTI file or folder of DICOM files")
    volume, affine = load_nifti(path)
    check(volume, affine, admission)
    stored = np.asarray(nibabel.load(str(path)).affine)  # type: ignore[attr-defined]
    orientation = nibabel.orientations.io_orientation(stored)
    turned = stored @ nibabel.orientations.inv_ornt_aff(orientation, _stored_shape(path))
    study_id = pseudonym("study", file_sha256(path))
    same = np.allclose(turned, affine, atol=1e-3)
    return [Study(study_id, volume, affine, stored_affine=stored if same else None)]


def read_places(studies: Sequence[Study], file: Path) -> list[Study]:
    """The one study with the candidates of a CSV: columns coordX, coordY, coordZ in LPS mm.

    Raises ValueError for several studies, and for a file that is no such table.
    """
    if len(studies) != 1:
        raise ValueError(f"candidates are of one study, and there are {len(studies)}")
    try:
        table = pd.read_csv(file, usecols=list(PLACE_COLUMNS))
        places = table[list(PLACE_COLUMNS)].to_numpy(float)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} is no table of {', '.join(PLACE_COLUMNS)}") from error
    return [replace(studies[0], places=places)]


def check(volume: np.ndarray, affine: np.ndarray, admission: Admission) -> None:
    """Raise Refused unless the volume is what the model was made for."""
    if min(volume.shape) < 2:
        raise Refused(Reason.WRONG_SHAPE, f"{volume.shape}: a single slice")
    if not admission.is_ct:
        return
    found = problem(volume)
    if found is not None:
        raise Refused(*found)
    if admission.min_lung_mm is not None:
        length_mm = lung_mm(volume, float(np.linalg.norm(affine[:3, 2])))
        if length_mm < admission.min_lung_mm:
            detail = f"{length_mm:.0f} mm of lung, not {admission.min_lung_mm:g}"
            raise Refused(Reason.NO_CHEST, detail)


def _read_dicom(folder: Path, admission: Admission) -> list[Study]:
    """Of each study the first series that can be read and is what the model was made for."""
    ledger = Ledger("predict", "series")
    found = []
    for study in dicom.find_studies(DicomVolumes(path=folder), 1, ledger):
        taken = False
        for candidate in study.candidates:
            if taken:
                ledger.quarantine(candidate.input_id, Reason.NOT_CHOSEN)
                continue
            try:
                volume, affine = candidate.read()
                assert affine is not None, "a DICOM series without affine"
                check(volume, affine, admission)
            except Refused as refused:
                ledger.quarantine(candidate.input_id, refused.reason, refused.detail)
                continue
            ledger.use(candidate.input_id)
            found.append(Study(study.study_id, volume, affine, candidate.files))
            taken = True
    if not found:
        reasons = Counter((e.reason, e.detail) for e in ledger.entries if e.reason is not None)
        (reason, detail), _ = reasons.most_common(1)[0]
        raise Refused(reason, detail)
    return found


def _stored_shape(path: Path) -> tuple[int, ...]:
    return tuple(nibabel.load(str(path)).shape[:3])  # type: ignore[attr-defined]
