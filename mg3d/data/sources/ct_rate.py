"""CT-RATE (Hamamci et al., arXiv 2403.17834), official layout; its training side only.

Layout below ``dataset/``::

    train_fixed/train_1/train_1_a/train_1_a_1.nii.gz    version 2: HU, true header
    train/train_1/train_1_a/train_1_a_1.nii.gz          version 1: stored values
    metadata/train_metadata.csv, no_chest_train.txt
    radiology_text_reports/train_reports.csv

A name is patient (two parts), scan (three), reconstruction (four). ``valid*`` is the set on which
everyone tests, so nothing of it is read here.

Which version a file is, its folder says and its voxels must agree: a rescale that would count twice
is refused, one that is missing too. Version 1 takes slope, intercept and spacing from the metadata;
where its header says nothing of the place (identity, or blank), directions too are the metadata's.
"""

import ast
import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mg3d.data.ct.refused import Refused
from mg3d.data.hounsfield import problem
from mg3d.data.identity import pseudonym
from mg3d.data.nifti import load_nifti
from mg3d.data.sources.study import Candidate, ReportRow, Study, Volume
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtRateReports, CtRateVolumes

NAME = "ct_rate"
FIXED, RAW = "train_fixed", "train"
METADATA, NO_CHEST = Path("metadata", "train_metadata.csv"), Path("metadata", "no_chest_train.txt")
REPORTS = "train_reports.csv"
SUFFIX = ".nii.gz"
GRAMMAR = re.compile(r"train_\d+_[a-z]+_\d+")
# Of the training side, from the data set's issue 22 and those who looked (spec/downstream 2).
KNOWN_BAD = {"train_11755_a_3", "train_11755_a_4", "train_14384_a_2", "train_1267_a_4"}
SECTIONS = {
    "ClinicalInformation_EN": "Clinical information",
    "Technique_EN": "Technique",
    "Findings_EN": "Findings",
    "Impressions_EN": "Impression",
}


@dataclass(frozen=True)
class Metadata:
    """What the metadata say of a volume; axes are the scanner's (columns, rows, slices)."""

    slope: float
    intercept: float
    spacing_mm: tuple[float, float, float]
    directions: tuple[float, ...] | None  # of rows and columns in LPS, six numbers


def find_studies(source: CtRateVolumes, ledger: Ledger) -> list[Study]:
    """A study per scan, or per reconstruction; a volume in both versions is read as version 2.

    The reconstruction with most slices (by the metadata) comes first. Raises ValueError if neither
    folder of volumes is there.
    """
    root = source.path
    if not any((root / folder).is_dir() for folder in (FIXED, RAW)):
        raise ValueError(f"neither {FIXED}/ nor {RAW}/ in {root}: CT-RATE has them in dataset/")
    metadata = rows_by_volume(root / METADATA)
    no_chest = _names(root / NO_CHEST)
    seen: set[str] = set()
    scans: dict[str, list[tuple[int, str, Candidate]]] = defaultdict(list)
    for folder in (FIXED, RAW):
        for path in sorted(p for p in (root / folder).rglob("*") if p.is_file()):
            name = path.name.removesuffix(SUFFIX)
            input_id = pseudonym("volume", f"{NAME}/{path.relative_to(root).as_posix()}")
            ledger.declare(input_id)
            row = metadata.get(name)
            facts = metadata_of(row)
            if not path.name.endswith(SUFFIX) or not GRAMMAR.fullmatch(name):
                ledger.quarantine(input_id, Reason.STRAY_FILE, "not a volume's name")
            elif name in seen:
                ledger.quarantine(input_id, Reason.NOT_CHOSEN, "a copy was read before")
            elif name in no_chest:
                ledger.quarantine(input_id, Reason.NO_CHEST, "on the data set's list")
            elif name in KNOWN_BAD:
                ledger.quarantine(input_id, Reason.KNOWN_BAD)
            elif folder == RAW and facts is None:
                ledger.quarantine(input_id, Reason.MISSING_TAG, "no rescale or spacing in metadata")
            else:
                seen.add(name)
                read = read_fixed if folder == FIXED else read_raw
                candidate = Candidate(
                    input_id,
                    pseudonym("accession", f"{NAME}/{name}"),
                    (path,),
                    partial(read, path, facts),  # type: ignore[arg-type]
                    facts=f"{folder} {facts}",
                )
                slices = int((row or {}).get("NumberofSlices") or 0)
                unit = name if source.reconstructions == "all" else name.rpartition("_")[0]
                scans[unit].append((-slices, name, candidate))
    studies = []
    for unit, found in sorted(scans.items()):
        patient = "_".join(unit.split("_")[:2])
        ranked = sorted(found, key=lambda item: item[:2])
        studies.append(
            Study(
                pseudonym("study", f"{NAME}/{unit}"),
                pseudonym("patient", f"{NAME}/{patient}"),
                tuple(candidate for *_, candidate in ranked),
            )
        )
    return studies


def read_fixed(path: Path, metadata: Metadata | None) -> Volume:
    """A volume of version 2: HU, and the affine of its header. Raises Refused."""
    voxels, affine = load_nifti(path)
    if found := problem(voxels):
        if metadata and not problem(_rescaled(voxels, metadata)):
            raise Refused(Reason.NOT_HU, "voxels of version 1: stored values, never rescaled")
        raise Refused(*found)
    return _int16(voxels), affine


def read_raw(path: Path, metadata: Metadata) -> Volume:
    """A volume of version 1: rescaled, with the metadata's spacing. Raises Refused."""
    voxels, affine = load_nifti(path, "pixdim")
    volume = _rescaled(voxels, metadata)
    if found := problem(volume):
        if not problem(voxels):
            raise Refused(Reason.NOT_HU, "voxels of version 2: a rescale would count twice")
        raise Refused(*found)
    if not (affine - np.diag(np.diagonal(affine))).any():  # RAS at the origin: no scanner wrote it
        return _by_metadata(_int16(volume), metadata)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    affine = affine.copy()
    affine[:3, :3] = directions * np.array(metadata.spacing_mm)
    return _int16(volume), affine


def _by_metadata(volume: np.ndarray, metadata: Metadata) -> tuple[np.ndarray, np.ndarray]:
    """``volume`` (columns, rows, slices) turned to the closest RAS, by the metadata's directions;
    the place in space is lost, so the affine's is 0. Raises Refused `missing_tag`."""
    import nibabel

    if metadata.directions is None:
        raise Refused(Reason.MISSING_TAG, "no directions in header or metadata")
    row, column = np.array(metadata.directions).reshape(2, 3)
    axes = np.stack([row, column, np.cross(row, column)], axis=1) * [[-1], [-1], [1]]  # LPS -> RAS
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(metadata.spacing_mm)
    orientation = nibabel.orientations.io_orientation(affine)
    to_ras = nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    return nibabel.orientations.apply_orientation(volume, orientation), affine @ to_ras


def _rescaled(voxels: np.ndarray, metadata: Metadata) -> np.ndarray:
    return voxels * np.float32(metadata.slope) + np.float32(metadata.intercept)


def _int16(volume: np.ndarray) -> np.ndarray:
    if volume.dtype == np.int16:
        return volume
    limits = np.iinfo(np.int16)
    return np.clip(np.rint(volume), limits.min, limits.max).astype(np.int16)


def metadata_of(row: dict[str, str] | None) -> Metadata | None:
    """Numbers of a row of the metadata; None if one that version 1 needs is missing."""
    if row is None:
        return None
    try:
        x, y = (float(size) for size in ast.literal_eval(row["XYSpacing"]))
        slope, intercept, z = (
            float(row[key]) for key in ("RescaleSlope", "RescaleIntercept", "ZSpacing")
        )
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
    spacing_mm = (x, y, z)
    if not np.isfinite([slope, intercept, *spacing_mm]).all() or min(spacing_mm) <= 0 or slope == 0:
        return None
    return Metadata(slope, intercept, spacing_mm, _directions(row))


def _directions(row: dict[str, str]) -> tuple[float, ...] | None:
    try:
        found = tuple(float(n) for n in ast.literal_eval(row["ImageOrientationPatient"]))
    except (KeyError, ValueError, SyntaxError, TypeError):
        return None
    return found if len(found) == 6 and np.isfinite(found).all() else None


def rows_by_volume(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a table by volume name without suffix; none if the file is not there."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {row["VolumeName"].removesuffix(SUFFIX): row for row in csv.DictReader(file)}


def _names(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    return {Path(line).name.removesuffix(SUFFIX) for line in path.read_text().split()}


def read_reports(source: CtRateReports) -> Iterator[ReportRow]:
    """A row per reconstruction, as the data set has it: reconstructions of a scan repeat the text.

    Raises ValueError if the table is absent or lacks a column.
    """
    path = source.path / REPORTS
    if not path.is_file():
        raise ValueError(f"no {path}: CT-RATE has it in dataset/radiology_text_reports/")
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        if missing := {"VolumeName", *SECTIONS} - set(table.fieldnames or []):
            raise ValueError(f"{path.name} lacks {sorted(missing)}: take the file of CT-RATE")
        for row in table:
            name = (row["VolumeName"] or "").removesuffix(SUFFIX)
            given = {title: (row[column] or "").strip() for column, title in SECTIONS.items()}
            text = "\n\n".join(f"{title}: {part}" for title, part in given.items() if part)
            yield ReportRow(f"{NAME}/{name}" if name else "", text, {})
