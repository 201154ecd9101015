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
import gzip
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mg3d import paths
from mg3d.data.identity import pseudonym
from mg3d.data.sources.dicom_export import find_files
from mg3d.ledger import Ledger, Reason
from mg3d.parallel import parallel_map
from mg3d.params import ConvertDicom

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# Rows per study in the manifest.
COLUMNS = [
    *("study_id", "patient_id", "accession_id", "series_id", "nifti", "num_slices"),
    *("shape_x_voxels", "shape_y_voxels", "shape_z_voxels"),
    *("spacing_x_mm", "spacing_y_mm", "spacing_z_mm"),
]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNDEFINED_LENGTH = 0xFFFFFFFF
SEQUENCE_END = (0xFFFE, 0xE0DD)


class Refused(Exception):
    """A file or series that cannot be used: a typed reason and a detail that identifies nobody."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Header:
    """What the header of one file says; None where a tag is absent or malformed. Lengths in mm."""

    path: Path
    sop_class: str
    series: str | None
    study: str | None
    patient: str | None
    accession: str
    instance: str | None
    image_type: tuple[str, ...]
    size: tuple[int, int] | None  # rows, columns
    spacing: tuple[float, ...] | None  # between rows, between columns
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None  # along a row, then along a column
    rescale: tuple[float, ...] | None
    complete: bool  # the pixel data is as long as it claims


TAGS: dict[str, str] = {
    "SeriesInstanceUID": "series",
    "StudyInstanceUID": "study",
    "PatientID": "patient",
    "Rows, Columns": "size",
    "PixelSpacing": "spacing",
    "ImagePositionPatient": "position",
    "ImageOrientationPatient": "orientation",
    "RescaleSlope, RescaleIntercept": "rescale",
}
READ_TAGS: list[Any] = [
    *("SOPClassUID", "SOPInstanceUID", "AccessionNumber", "ImageType"),
    *(name for names in TAGS for name in names.split(", ")),
]


@disable_value_validation()  # its warnings quote the values, which may be a patient's
def read_header(path: Path) -> Header:
    """Header of one DICOM file, without its pixels.

    Raises Refused: `not_dicom`, or `truncated` when not even the class of the object can be read.
    """
    with path.open("rb") as file:
        has_preamble = file.read(132)[128:] == b"DICM"
        file.seek(0)
        try:
            data = pydicom.dcmread(
                file, stop_before_pixels=True, force=True, specific_tags=READ_TAGS
            )
            # Objects without a preamble predate the file format; force also "reads" a text file.
            sop_class = str(data.get("SOPClassUID") or "")
            if not has_preamble and not (sop_class and data.get("SOPInstanceUID")):
                raise Refused(Reason.NOT_DICOM)
            if not sop_class and data.file_meta.get("MediaStorageSOPClassUID"):
                sop_class = str(data.file_meta.MediaStorageSOPClassUID)
            complete = _has_all_pixels(file, data)
        except Refused:
            raise
        except Exception as error:  # the parser meets arbitrary bytes
            reason = Reason.TRUNCATED if has_preamble else Reason.NOT_DICOM
            raise Refused(reason, type(error).__name__) from None
    if not sop_class:
        raise Refused(Reason.TRUNCATED, "ends before SOPClassUID")
    return Header(
        path=path,
        sop_class=sop_class,
        series=_text(data, "SeriesInstanceUID"),
        study=_text(data, "StudyInstanceUID"),
        patient=_text(data, "PatientID"),
        accession=_text(data, "AccessionNumber") or "",
        instance=_text(data, "SOPInstanceUID"),
        image_type=tuple(_strings(data.get("ImageType"))),
        size=_size(data),
        spacing=_numbers(data, 2, "PixelSpacing"),
        position=_numbers(data, 3, "ImagePositionPatient"),
        orientation=_numbers(data, 6, "ImageOrientationPatient"),
        rescale=_numbers(data, 2, "RescaleSlope", "RescaleIntercept"),
        complete=complete,
    )


def _text(data: pydicom.Dataset, name: str) -> str | None:
    return str(data.get(name) or "").strip() or None


def _strings(value: Any) -> Iterable[str]:
    values = [value] if isinstance(value, str) else value or []
    return (str(part).upper() for part in values)


def _numbers(data: pydicom.Dataset, length: int, *names: str) -> tuple[float, ...] | None:
    try:
        values = np.hstack([np.asarray(data[name].value, float) for name in names])
    except (KeyError, TypeError, ValueError):
        return None
    whole = values.shape == (length,) and bool(np.isfinite(values).all())
    return tuple(values.tolist()) if whole else None


def _size(data: pydicom.Dataset) -> tuple[int, int] | None:
    size = _numbers(data, 2, "Rows", "Columns")
    return None if size is None else (int(size[0]), int(size[1]))


def _has_all_pixels(file: BinaryIO, data: pydicom.FileDataset) -> bool:
    """Whether the PixelData element at the file's position is as long as it claims.

    The position is where `stop_before_pixels` left it. A deflated stream is checked when decoded.
    """
    if data.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        return True
    implicit, little = data.original_encoding
    order = "<" if little else ">"
    head = struct.Struct(order + ("HHL" if implicit else "HH4xL"))
    item = struct.Struct(order + "HHL")
    start = file.tell()
    size = file.seek(0, 2)
    file.seek(start)
    content = file.read(head.size)
    if len(content) < head.size:
        return False
    length = head.unpack(content)[-1]
    if length != UNDEFINED_LENGTH:
        return start + head.size + length <= size
    while len(content := file.read(item.size)) == item.size:  # encapsulated: PS3.5 A.4
        *tag, length = item.unpack(content)
        if tuple(tag) == SEQUENCE_END:
            return True
        if file.seek(length, 1) > size:
            return False
    return False


def check_ct_series(headers: Sequence[Header]) -> None:
    """Raise Refused unless ``headers`` are one series of axial-or-oblique CT of one patient."""
    classes = {header.sop_class for header in headers}
    if classes & set(MULTI_FRAME_CT):
        raise Refused(Reason.MULTI_FRAME, "export as single-frame CT Image Storage")
    if any(name.startswith(SECONDARY_CAPTURE) for name in classes):
        raise Refused(Reason.SECONDARY, "secondary capture")
    if classes != {CT_IMAGE}:
        raise Refused(Reason.NOT_CT, ", ".join(sorted(classes - {CT_IMAGE})))
    if not all(header.complete for header in headers):
        count = sum(not header.complete for header in headers)
        raise Refused(Reason.TRUNCATED, f"{count} of {len(headers)} files")
    if any({"LOCALIZER", "SCOUT"} & set(header.image_type) for header in headers):
        raise Refused(Reason.LOCALIZER)
    if any("SECONDARY" in header.image_type[1:2] for header in headers):
        raise Refused(Reason.SECONDARY, "ImageType")
    if len({header.patient for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the series")
    if len({header.study for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_STUDIES, "StudyInstanceUID differs within the series")
    for names, field in TAGS.items():
        if any(getattr(header, field) is None for header in headers):
            raise Refused(Reason.MISSING_TAG, names)


@dataclass(frozen=True)
class Grid:
    """Slices in order; ``affine`` maps the voxel (column, row, slice) to RAS mm."""

    slices: tuple[Header, ...]
    affine: np.ndarray

    def rank(self) -> tuple[int, int, str]:
        """Sorts the series of a study, the one to use first (see the module's docstring)."""
        coverage_mm = float(np.linalg.norm(self.affine[:3, 2])) * len(self.slices)
        return -round(coverage_mm / 10), -len(self.slices), self.slices[0].series or ""


def arrange(headers: Sequence[Header], params: ConvertDicom) -> Grid:
    """Order slices along their common normal and derive the affine (PS3.3 C.7.6.2.1.1).

    The slice step is the mean vector between neighbouring positions, so a tilted gantry gives a
    sheared affine, not a wrong one. Raises Refused: `too_few_slices`, `mixed_geometry`,
    `duplicate_position`, `missing_slice`.
    """
    if len(headers) < params.min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"{len(headers)} < {params.min_slices}")
    first = headers[0]
    for field, tolerance in (("size", 0), ("spacing", 1e-3), ("orientation", 1e-3)):
        values = np.array([getattr(header, field) for header in headers])
        if np.ptp(values, axis=0).max() > tolerance:
            raise Refused(Reason.MIXED_GEOMETRY, f"{field} differs within the series")
    assert first.orientation is not None
    assert first.spacing is not None
    row, column = np.array(first.orientation).reshape(2, 3)
    if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise Refused(Reason.MIXED_GEOMETRY, "ImageOrientationPatient is not orthonormal")
    if min(first.spacing) <= 0:
        raise Refused(Reason.MIXED_GEOMETRY, "PixelSpacing is not positive")

    normal = np.cross(row, column)
    positions = np.array([header.position for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    if gaps.min() < 0.01 or gaps.min() < params.gap_tolerance_fraction * typical:
        raise Refused(Reason.DUPLICATE_POSITION, "two slices at one position")
    if np.abs(gaps - typical).max() > params.gap_tolerance_fraction * typical:
        raise Refused(
            Reason.MISSING_SLICE,
            f"gaps from {gaps.min():.3f} to {gaps.max():.3f} mm, typically {typical:.3f} mm",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    strays = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    if np.linalg.norm(strays, axis=1).max() > max(0.5 * typical, 1.0):
        raise Refused(Reason.MIXED_GEOMETRY, "slices are shifted against each other")

    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return Grid(tuple(headers[i] for i in order), LPS_TO_RAS @ affine)


@disable_value_validation()
def read_volume(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Decode a series -> (int16 [X, Y, Z], affine to RAS mm).

    Axes are reordered and flipped to the closest of R, A and S; an oblique series keeps its oblique
    affine and is not resampled. Raises Refused `undecodable`.
    """
    rows, columns = grid.slices[0].size or (0, 0)
    volume = np.empty((columns, rows, len(grid.slices)), np.int16)
    limits = np.iinfo(np.int16)
    for index, header in enumerate(grid.slices):
        try:
            stored = pydicom.dcmread(header.path, force=True).pixel_array
        except Exception as error:  # decoders meet arbitrary bytes
            raise Refused(Reason.UNDECODABLE, type(error).__name__) from None
        if stored.shape != (rows, columns):
            raise Refused(Reason.UNDECODABLE, f"pixels of shape {stored.shape}")
        slope, intercept = header.rescale or (1.0, 0.0)
        values = np.rint(stored * np.float64(slope) + intercept)
        volume[:, :, index] = np.clip(values, limits.min, limits.max).T
    orientation = nibabel.orientations.io_orientation(grid.affine)
    affine = grid.affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    return nibabel.orientations.apply_orientation(volume, orientation), affine


def write_nifti(volume: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write ``volume`` [X, Y, Z] as NIfTI-1 in scanner millimetres; same input, same bytes."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3  # a quaternion cannot say so
    image.set_qform(affine, code="unknown" if sheared else "scanner")
    with paths.atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


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
