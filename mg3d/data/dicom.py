"""A PACS export -> studies and their CT series, in order of preference.

Geometry comes from ImagePositionPatient and ImageOrientationPatient (DICOM PS3.3 C.7.6.2.1.1),
never from SliceThickness, file names or InstanceNumber. Values are HU by each slice's own
RescaleSlope and RescaleIntercept (C.11.1.1.2), rounded to integers.

Which series stands for a study: of those that are whole, the one that covers the most of the
patient (slice step times slices, to the centimetre); of equals the one with the most slices; of
equals the first by SeriesInstanceUID. A series with one truncated file is left out whole: half a
chest is not a volume. A series with two acquisitions is two series here.

The ledger counts series, and files that belong to none (unreadable files, second copies); each
entry's ``count`` is its number of files, so files are conserved too.
"""

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from mg3d.data.ct.acquisitions import divide
from mg3d.data.ct.admission import CT_IMAGE, check_ct_series, leave_out_localizers
from mg3d.data.ct.geometry import Grid, arrange
from mg3d.data.ct.header import Header, read_header
from mg3d.data.ct.pixels import read_volume
from mg3d.data.ct.refused import Refused
from mg3d.data.identity import pseudonym
from mg3d.data.sources.dicom_export import find_files
from mg3d.data.sources.study import Candidate, Study
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import DicomVolumes


def _scan(params: DicomVolumes, path: Path) -> Header | Refused:
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


def find_studies(source: DicomVolumes, num_workers: int, ledger: Ledger) -> list[Study]:
    """Studies under ``source.path`` with their series, the best first; settles the others.

    Raises ValueError if there are no files.
    """
    root = source.path
    unsafe = _unsafe_links(root)
    files = [path for path in find_files(root) if path not in unsafe]

    def refuse_file(path: Path, refused: Refused) -> None:
        file_id = pseudonym("file", path.relative_to(root).as_posix())
        ledger.declare(file_id)
        ledger.quarantine(file_id, refused.reason, refused.detail)

    def refuse(series_id: str, num_files: int, refused: Refused) -> None:
        ledger.declare(series_id)
        ledger.quarantine(series_id, refused.reason, refused.detail, num_files)

    for path, refused in unsafe.items():
        refuse_file(path, refused)
    scan = partial(_scan, source)
    headers = parallel_map(scan, files, num_workers, "convert_volumes: files scanned")
    groups = _series(zip(files, headers, strict=True), refuse_file)

    studies: dict[str, list[tuple[Grid, Candidate]]] = defaultdict(list)
    patients: dict[str, set[str]] = defaultdict(set)
    for group in groups.values():
        for header in group:
            if header.study and header.patient:
                patients[header.study].add(header.patient)
    for series, group in sorted(groups.items()):
        series_id, study = pseudonym("series", series), group[0].study or ""
        group, localizers = leave_out_localizers(group)
        for header in localizers:
            refuse_file(header.path, Refused(Reason.LOCALIZER, "in a series of slices"))
        try:
            check_ct_series(group)
            if len(patients[study]) > 1:
                raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the study")
            parts, copies = divide([part for header in group for part in header.slices], source)
        except Refused as refused:
            refuse(series_id, len(group), refused)
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
                grid = arrange(part, source)
            except Refused as refused:
                refuse(part_id, len(own), refused)
                continue
            ledger.declare(part_id)
            studies[study].append((grid, _candidate(part_id, len(own), grid, source)))

    settled = sum(entry.count for entry in ledger.entries)
    waiting = sum(found.num_files for series in studies.values() for _, found in series)
    assert settled + waiting == len(files) + len(unsafe)
    return [
        Study(
            pseudonym("study", study),
            pseudonym("patient", next(iter(patients[study]))),
            tuple(candidate for _, candidate in sorted(found, key=lambda item: item[0].rank())),
        )
        for study, found in sorted(studies.items())
    ]


def _candidate(series_id: str, num_files: int, grid: Grid, source: DicomVolumes) -> Candidate:
    accession = grid.slices[0].accession
    return Candidate(
        input_id=series_id,
        accession_id=pseudonym("accession", accession) if accession else "",
        files=tuple(dict.fromkeys(header.path for header in grid.slices)),
        read=partial(read_volume, grid, source),
        num_files=num_files,
        num_slices=len(grid.slices),
    )
