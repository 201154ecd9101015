"""STAGE convert_dicom: CT series -> one int16 NIfTI per study, in HU, RAS axes, true spacing.

Geometry comes from ImagePositionPatient and ImageOrientationPatient (DICOM PS3.3 C.7.6.2.1.1),
never from SliceThickness, file names or InstanceNumber. Values are HU by each slice's own
RescaleSlope and RescaleIntercept (C.11.1.1.2), rounded to integers.

Which series stands for a study: of those that are whole, the one that covers the most of the
patient (slice step times slices, to the centimetre); of equals the one with the most slices; of
equals the first by SeriesInstanceUID. If it cannot be decoded, the next one. The others are
`not_chosen`. A series with one truncated file is left out whole: half a chest is not a volume.

The ledger counts series, and files that belong to none (unreadable files, second copies); each
entry's ``count`` is its number of files, so files are conserved too.
"""

import filecmp
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mg3d import paths
from mg3d.data.ct.admission import CT_IMAGE, check_ct_series
from mg3d.data.ct.geometry import Grid, arrange
from mg3d.data.ct.header import Header, Refused, read_header
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.ct.pixels import read_volume
from mg3d.data.identity import pseudonym
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
class _Converted:
    """What became of a study: its manifest row, and each tried series' reason (None: used)."""

    row: dict[str, object] | None
    outcomes: dict[str, Refused | None]


def _convert_study(folder: Path, candidates: Sequence[Grid]) -> _Converted:
    """Convert the first series that decodes; the later ones are `not_chosen`."""
    outcomes: dict[str, Refused | None] = {}
    row: dict[str, object] | None = None
    for grid in candidates:
        header = grid.slices[0]
        assert header.series is not None
        assert header.study is not None
        assert header.patient is not None
        if row is not None:
            outcomes[header.series] = Refused(Reason.NOT_CHOSEN, "another series of the study is")
            continue
        try:
            volume, affine = read_volume(grid)
        except Refused as refused:
            outcomes[header.series] = refused
            continue
        study_id = pseudonym("study", header.study)
        name = f"{study_id}.nii.gz"
        write_nifti(volume, affine, folder / name)
        spacing = np.linalg.norm(affine[:3, :3], axis=0).round(6).tolist()
        accession = pseudonym("accession", header.accession) if header.accession else ""
        row = dict(
            zip(
                COLUMNS,
                [
                    *(study_id, pseudonym("patient", header.patient), accession),
                    *(pseudonym("series", header.series), name, len(grid.slices)),
                    *volume.shape,
                    *spacing,
                ],
                strict=True,
            )
        )
        outcomes[header.series] = None
    return _Converted(row, outcomes)


def _scan(path: Path) -> Header | Refused:
    try:
        return read_header(path)
    except Refused as refused:
        return refused
    except OSError as error:
        return Refused(Reason.UNREADABLE, type(error).__name__)


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
    none of its series can be used.
    """
    files = find_files(source)
    ledger = Ledger("convert_dicom", "series or stray file")

    def refuse_file(path: Path, refused: Refused) -> None:
        file_id = pseudonym("file", path.relative_to(source).as_posix())
        ledger.declare(file_id)
        ledger.quarantine(file_id, refused.reason, refused.detail)

    headers = parallel_map(_scan, files, params.num_workers, "convert_dicom: files scanned")
    groups = _series(zip(files, headers, strict=True), refuse_file)

    def settle(series: str, refused: Refused | None) -> None:
        series_id, count = pseudonym("series", series), len(groups[series])
        ledger.declare(series_id)
        if refused is None:
            ledger.use(series_id, count)
        else:
            ledger.quarantine(series_id, refused.reason, refused.detail, count)

    studies: dict[str, list[Grid]] = defaultdict(list)
    patients: dict[str, set[str]] = defaultdict(set)
    for group in groups.values():
        for header in group:
            if header.study and header.patient:
                patients[header.study].add(header.patient)
    for series, group in sorted(groups.items()):
        try:
            check_ct_series(group)
            study = group[0].study or ""
            if len(patients[study]) > 1:
                raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the study")
            studies[study].append(arrange(group, params))
        except Refused as refused:
            settle(series, refused)

    candidates = [sorted(grids, key=Grid.rank) for _, grids in sorted(studies.items())]
    work = partial(_convert_study, out / paths.NIFTI)
    rows = []
    for converted in parallel_map(
        work, candidates, params.num_workers, "convert_dicom: studies converted"
    ):
        for series, outcome in converted.outcomes.items():
            settle(series, outcome)
        if converted.row is not None:
            rows.append(converted.row)

    assert sum(entry.count for entry in ledger.entries) == len(files)
    _finish(out, rows)
    ledger.write(out)
    if not rows:
        raise ValueError(
            f"no usable CT series among {len(files)} files under {source}: "
            f"{ledger.summary()['reasons']}; entries in {out / paths.LEDGER_ENTRIES}"
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
