"""STAGE convert_dicom: CT series -> one int16 NIfTI per study, in HU, RAS axes, true spacing.

Geometry comes from ImagePositionPatient and ImageOrientationPatient (DICOM PS3.3 C.7.6.2.1.1),
never from SliceThickness, file names or InstanceNumber. Values are HU by each slice's own
RescaleSlope and RescaleIntercept (C.11.1.1.2), rounded to integers.

Which series stands for a study: of those that are whole, the one that covers the most of the
patient (slice step times slices, to the centimetre); of equals the one with the most slices; of
equals the first by SeriesInstanceUID. If it cannot be decoded, the next one. The others are
`not_chosen`. A series with one truncated file is left out whole: half a chest is not a volume.

A series with two acquisitions is two series here. A volume with too little lung is no chest, by
its voxels, whatever its description says.

The ledger counts series, and files that belong to none (unreadable files, second copies); each
entry's ``count`` is its number of files, so files are conserved too.

What leaves this stage are pseudonyms, geometry and voxels: no other value of a header is written
(docs/datasets.md has the profile).
"""

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mg3d import paths
from mg3d.data.ct.acquisitions import divide
from mg3d.data.ct.admission import CT_IMAGE, check_ct_series
from mg3d.data.ct.coverage import lung_mm
from mg3d.data.ct.geometry import Grid, arrange
from mg3d.data.ct.header import Header, read_header
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.ct.pixels import read_volume
from mg3d.data.ct.refused import Refused
from mg3d.data.identity import has_secret_key, pseudonym
from mg3d.data.sources.dicom_export import find_files
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import ConvertDicom

# Rows per study in the manifest.
COLUMNS = [
    *("study_id", "patient_id", "accession_id", "series_id", "nifti", "num_slices"),
    *("shape_x_voxels", "shape_y_voxels", "shape_z_voxels"),
    *("spacing_x_mm", "spacing_y_mm", "spacing_z_mm"),
]


@dataclass(frozen=True)
class _Candidate:
    """A series, or one acquisition of it, that may stand for its study."""

    series_id: str
    num_files: int
    grid: Grid


@dataclass(frozen=True)
class _Converted:
    """What became of a study: its manifest row, and each candidate's reason (None: used)."""

    row: dict[str, object] | None
    outcomes: list[Refused | None]


def _convert_study(
    folder: Path, params: ConvertDicom, candidates: Sequence[_Candidate]
) -> _Converted:
    """Convert the first series that decodes and shows a chest; later ones are `not_chosen`."""
    outcomes: list[Refused | None] = []
    row: dict[str, object] | None = None
    for candidate in candidates:
        header = candidate.grid.slices[0]
        assert header.study is not None
        assert header.patient is not None
        if row is not None:
            outcomes.append(Refused(Reason.NOT_CHOSEN, "another series of the study is"))
            continue
        try:
            volume, affine = read_volume(candidate.grid, params)
            spacing = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
            if params.min_lung_mm is not None:
                length_mm = lung_mm(volume, spacing[2])
                if length_mm < params.min_lung_mm:
                    detail = f"{length_mm:.0f} mm of lung, not {params.min_lung_mm:g}"
                    raise Refused(Reason.NO_CHEST, detail)
        except Refused as refused:
            outcomes.append(refused)
            continue
        study_id = pseudonym("study", header.study)
        name = f"{study_id}.nii.gz"
        write_nifti(volume, affine, folder / name)
        accession = pseudonym("accession", header.accession) if header.accession else ""
        row = dict(
            zip(
                COLUMNS,
                [
                    *(study_id, pseudonym("patient", header.patient), accession),
                    *(candidate.series_id, name, len(candidate.grid.slices)),
                    *volume.shape,
                    *spacing,
                ],
                strict=True,
            )
        )
        outcomes.append(None)
    return _Converted(row, outcomes)


def _scan(params: ConvertDicom, path: Path) -> Header | Refused:
    try:
        return read_header(path, params)
    except Refused as refused:
        return refused
    except OSError as error:
        return Refused(Reason.UNREADABLE, type(error).__name__)


def _unsafe_links(source: Path) -> dict[Path, Refused]:
    """Links that leave ``source``, lead nowhere or to a folder: none of them is followed."""
    root = source.resolve()
    found = {}
    for folder, names, files in os.walk(source):
        for path in (Path(folder) / name for name in names + files):
            if not path.is_symlink():
                continue
            try:
                target = path.resolve(strict=True)
            except (OSError, RuntimeError):  # nowhere, or in a circle
                found[path] = Refused(Reason.UNSAFE_PATH, "a link that leads nowhere")
                continue
            if not target.is_relative_to(root):
                found[path] = Refused(Reason.UNSAFE_PATH, "a link out of the folder")
            elif target.is_dir():
                found[path] = Refused(Reason.UNSAFE_PATH, "a link to a folder")
    return found


def _series(
    scanned: Iterable[tuple[Path, Header | Refused]], refuse_file: Callable[[Path, Refused], None]
) -> dict[str, list[Header]]:
    """Group headers by SeriesInstanceUID; files that belong to no series go to ``refuse_file``."""
    groups: dict[str, dict[str, Header]] = defaultdict(dict)
    for path, found in scanned:
        if isinstance(found, Refused):
            refuse_file(path, found)
            continue
        if found.series is None:
            reason = Reason.MISSING_TAG if found.sop_class == CT_IMAGE else Reason.NOT_CT
            if not found.complete and found.sop_class == CT_IMAGE:
                reason = Reason.TRUNCATED
            refuse_file(path, Refused(reason, "no SeriesInstanceUID"))
            continue
        group = groups[found.series]
        twin = group.get(found.instance or "")
        if twin is not None and filecmp.cmp(twin.path, path, shallow=False):
            refuse_file(path, Refused(Reason.DUPLICATE_FILE, "same bytes as another file"))
            continue
        # Same instance, other bytes: kept apart, so that its position collides below.
        group[str(path) if twin is not None or not found.instance else found.instance] = found
    return {series: list(group.values()) for series, group in groups.items()}


def convert_dicom(source: Path, out: Path, params: ConvertDicom) -> Ledger:
    """Convert every study under ``source`` to ``out/nifti/<study_id>.nii.gz`` plus a manifest.

    Returns the ledger, also written to ``out``. Raises ValueError if ``source`` holds no files, or
    none of its series can be used; if ``strict``, also if a series holds several patients; if
    ``require_id_key``, also without a secret key.
    """
    if params.require_id_key and not has_secret_key():
        raise ValueError(
            "convert_dicom.require_id_key is true and there is no key: set MG3D_ID_KEY, or "
            "MG3D_ID_KEY_FILE to a file outside the repository"
        )
    unsafe = _unsafe_links(source)
    files = [path for path in find_files(source) if path not in unsafe]
    ledger = Ledger("convert_dicom", "series or stray file")

    def refuse_file(path: Path, refused: Refused) -> None:
        file_id = pseudonym("file", path.relative_to(source).as_posix())
        ledger.declare(file_id)
        ledger.quarantine(file_id, refused.reason, refused.detail)

    def settle(series_id: str, num_files: int, refused: Refused | None) -> None:
        ledger.declare(series_id)
        if refused is None:
            ledger.use(series_id, num_files)
        else:
            ledger.quarantine(series_id, refused.reason, refused.detail, num_files)

    for path, refused in unsafe.items():
        refuse_file(path, refused)
    scan = partial(_scan, params)
    headers = parallel_map(scan, files, params.num_workers, "convert_dicom: files scanned")
    groups = _series(zip(files, headers, strict=True), refuse_file)

    studies: dict[str, list[_Candidate]] = defaultdict(list)
    patients: dict[str, set[str]] = defaultdict(set)
    for group in groups.values():
        for header in group:
            if header.study and header.patient:
                patients[header.study].add(header.patient)
    for series, group in sorted(groups.items()):
        series_id, study = pseudonym("series", series), group[0].study or ""
        try:
            check_ct_series(group)
            if len(patients[study]) > 1:
                raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the study")
            parts, copies = divide([part for header in group for part in header.slices], params)
        except Refused as refused:
            settle(series_id, len(group), refused)
            continue
        for copy in copies:
            if copy.frame is None:
                refuse_file(copy.path, Refused(Reason.DUPLICATE_SLICE, "same place, same pixels"))
        counted: set[Path] = set()  # a file of several acquisitions counts for the first
        for number, part in enumerate(parts, 1):
            part_id = series_id if len(parts) == 1 else f"{series_id}.{number}"
            own = {header.path for header in part} - counted
            counted |= own
            try:
                grid = arrange(part, params)
                studies[study].append(_Candidate(part_id, len(own), grid))
            except Refused as refused:
                settle(part_id, len(own), refused)

    candidates = [
        sorted(found, key=lambda candidate: candidate.grid.rank())
        for _, found in sorted(studies.items())
    ]
    work = partial(_convert_study, out / paths.NIFTI, params)
    converted = parallel_map(
        work, candidates, params.num_workers, "convert_dicom: studies converted"
    )
    rows = []
    for found, study_result in zip(candidates, converted, strict=True):
        for candidate, outcome in zip(found, study_result.outcomes, strict=True):
            settle(candidate.series_id, candidate.num_files, outcome)
        if study_result.row is not None:
            rows.append(study_result.row)

    assert sum(entry.count for entry in ledger.entries) == len(files) + len(unsafe)
    _finish(out, rows)
    ledger.write(out)
    if not rows:
        raise ValueError(
            f"no usable CT series among {len(files)} files under {source}: "
            f"{ledger.summary()['reasons']}; entries in {out / paths.LEDGER_ENTRIES}"
        )
    mixed = sum(entry.reason is Reason.MIXED_PATIENTS for entry in ledger.entries)
    if params.strict and mixed:
        raise ValueError(
            f"{mixed} series under {source} hold or share slices of several patients and "
            "convert_dicom.strict is true: mend the export; "
            f"entries in {out / paths.LEDGER_ENTRIES}"
        )
    return ledger


def _finish(out: Path, rows: list[dict[str, object]]) -> None:
    """Write the manifest; drop volumes of an earlier conversion that it does not list."""
    import pandas as pd

    manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values("study_id")
    with paths.atomic_write(out / paths.MANIFEST) as temporary:
        manifest.to_parquet(temporary, index=False)
    kept = set(manifest["nifti"])
    for stale in (out / paths.NIFTI).glob("*.nii.gz"):
        if stale.name not in kept:
            stale.unlink()
