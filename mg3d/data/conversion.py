"""STAGE convert_volumes: volumes of a source -> an int16 NIfTI per study, HU, RAS, true spacing.

Of a study's candidates the first that can be read and shows a chest is taken; the others are
`not_chosen`. A volume with too little lung is no chest, by its voxels, whatever its description
says. A source that knows no millimetres gives a NIfTI without qform and sform, and no spacing.

What leaves this stage are pseudonyms, geometry and voxels: no other value of a header is written
(docs/datasets.md has the profile).

A file's name holds a digest of all that decides it: the candidates' bytes, the settings, the code.
What became of a study lies beside it as JSON. So a study that is there is done: a stage killed at
any point and started again converts the remainder only, and so does one to which studies were
added. Hence `persist: true` in dvc.yaml.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mg3d import paths
from mg3d.data import dicom
from mg3d.data.ct.coverage import lung_mm
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.ct.refused import Refused
from mg3d.data.identity import has_secret_key
from mg3d.data.sources import ct_rate, ctrg_chest
from mg3d.data.sources.study import Study
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import (
    ConvertVolumes,
    CtRateVolumes,
    CtrgVolumes,
    DicomVolumes,
    SourceVolumes,
)

# Rows per study in the manifest.
COLUMNS = [
    *("study_id", "patient_id", "accession_id", "series_id", "nifti", "num_slices"),
    *("shape_x_voxels", "shape_y_voxels", "shape_z_voxels"),
    *("spacing_x_mm", "spacing_y_mm", "spacing_z_mm"),
]
LIBRARIES = ("numpy", "nibabel", "pillow", "pydicom", "pylibjpeg", "scipy")


@dataclass(frozen=True)
class _Converted:
    """What became of a study: its files, its manifest row, each candidate's reason (None: used)."""

    files: set[str]
    row: list[object] | None
    outcomes: list[tuple[str, str] | None]


def _convert(folder: Path, params: ConvertVolumes, settings: str, study: Study) -> _Converted:
    """Convert ``study``, or read what an earlier call left of the same."""
    try:
        name = f"{study.study_id}-{_key(study, params, settings)}"
    except OSError as error:
        refused = (Reason.UNREADABLE.value, type(error).__name__)
        return _Converted(set(), None, [refused] * len(study.candidates))
    fate = folder / f"{name}.json"
    volume = f"{name}.nii.gz"
    if not fate.is_file():
        row, outcomes = _first_that_shows_a_chest(study, folder / volume, params)
        with paths.atomic_write(fate) as temporary:
            temporary.write_text(json.dumps({"row": row, "outcomes": outcomes}) + "\n")
    kept = json.loads(fate.read_text())
    files = {fate.name} | ({volume} if kept["row"] else set())
    return _Converted(files, kept["row"], kept["outcomes"])


def _first_that_shows_a_chest(
    study: Study, target: Path, params: ConvertVolumes
) -> tuple[list[object] | None, list[tuple[str, str] | None]]:
    """Manifest row of the volume written to ``target``, and the reason of each candidate."""
    row: list[object] | None = None
    outcomes: list[tuple[str, str] | None] = []
    for candidate in study.candidates:
        if row is not None:
            outcomes.append((Reason.NOT_CHOSEN, "another series of the study is"))
            continue
        try:
            volume, affine = candidate.read()
            spacing: list[float | None] = [None] * 3
            if affine is not None:
                spacing = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
                _check_lung(volume, affine, params.min_lung_mm)
        except Refused as refused:
            outcomes.append((refused.reason, refused.detail))
            continue
        write_nifti(volume, affine, target)
        row = [
            *(study.study_id, study.patient_id, candidate.accession_id, candidate.input_id),
            *(target.name, candidate.num_slices or volume.shape[2], *volume.shape, *spacing),
        ]
        outcomes.append(None)
    return row, outcomes


def _check_lung(volume: np.ndarray, affine: np.ndarray, min_lung_mm: float | None) -> None:
    if min_lung_mm is None:
        return
    length_mm = lung_mm(volume, float(np.linalg.norm(affine[:3, 2])))
    if length_mm < min_lung_mm:
        raise Refused(Reason.NO_CHEST, f"{length_mm:.0f} mm of lung, not {min_lung_mm:g}")


def _key(study: Study, params: ConvertVolumes, settings: str) -> str:
    """Sixteen hex digits of all that decides what becomes of ``study``."""
    total = hashlib.sha256(f"{settings}/{params.min_lung_mm}/{_code()}".encode())
    for candidate in study.candidates:
        about = (candidate.input_id, candidate.accession_id, study.patient_id, candidate.facts)
        total.update("\0".join(about).encode())
        for path in candidate.files:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


@cache
def _code() -> str:
    """Digest of our code that reads volumes, and the versions of the libraries that it calls."""
    here = Path(__file__).parent
    names = ("conversion.py", "dicom.py", "hounsfield.py", "nifti.py", "slices.py")
    total = hashlib.sha256()
    for path in [here / name for name in names] + sorted((here / "ct").glob("*.py")):
        total.update(path.read_bytes())
    for path in sorted((here / "sources").glob("*.py")):
        total.update(path.read_bytes())
    total.update(" ".join(version(library) for library in LIBRARIES).encode())
    return total.hexdigest()


def _find_studies(source: SourceVolumes, params: ConvertVolumes, ledger: Ledger) -> list[Study]:
    match source:
        case DicomVolumes():
            return dicom.find_studies(source, params.num_workers, ledger)
        case CtRateVolumes():
            return ct_rate.find_studies(source, ledger)
        case CtrgVolumes():
            return ctrg_chest.find_studies(source, ledger)


def convert_volumes(source: SourceVolumes, out: Path, params: ConvertVolumes) -> Ledger:
    """Convert every study of ``source`` to ``out/nifti/<study_id>-<key>.nii.gz`` plus a manifest.

    Returns the ledger, also written to ``out``. Raises ValueError if the source is not there, or
    none of its volumes can be used; if ``strict``, also if a series holds several patients; if
    ``require_id_key``, also without a secret key.
    """
    if params.require_id_key and not has_secret_key():
        raise ValueError(
            "convert_volumes.require_id_key is true and there is no key: set MG3D_ID_KEY, or "
            "MG3D_ID_KEY_FILE to a file outside the repository"
        )
    ledger = Ledger("convert_volumes", "series or stray file")
    studies = _find_studies(source, params, ledger)
    settings = source.model_dump_json(exclude={"path", "strict"})
    work = partial(_convert, out / paths.NIFTI, params, settings)
    converted = parallel_map(work, studies, params.num_workers, "convert_volumes: studies")
    rows = []
    kept: set[str] = set()
    for study, found in zip(studies, converted, strict=True):
        for candidate, outcome in zip(study.candidates, found.outcomes, strict=True):
            if outcome is None:
                ledger.use(candidate.input_id, candidate.num_files)
            else:
                reason, detail = outcome
                ledger.quarantine(candidate.input_id, Reason(reason), detail, candidate.num_files)
        kept |= found.files
        if found.row is not None:
            rows.append(found.row)
    _finish(out, rows, kept)
    ledger.write(out)
    mixed = sum(entry.reason is Reason.MIXED_PATIENTS for entry in ledger.entries)
    if not rows:
        raise ValueError(
            f"no usable CT volume under {source.path}: {ledger.summary()['reasons']}; "
            f"entries in {out / paths.LEDGER_ENTRIES}"
        )
    if isinstance(source, DicomVolumes) and source.strict and mixed:
        raise ValueError(
            f"{mixed} series under {source.path} hold or share slices of several patients and "
            "strict is true: mend the export; "
            f"entries in {out / paths.LEDGER_ENTRIES}"
        )
    return ledger


def _finish(out: Path, rows: list[list[object]], kept: set[str]) -> None:
    """Write the manifest; drop what an earlier conversion left and this one did not make."""
    import pandas as pd

    manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("study_id")
    manifest = manifest.astype(dict.fromkeys(COLUMNS[-3:], float))
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    for path in (out / paths.NIFTI).glob("*"):
        if path.name not in kept:
            path.unlink()
