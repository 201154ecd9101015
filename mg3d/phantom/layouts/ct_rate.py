"""CT-RATE's training side (spec/downstream 2), for pre-training: both versions, both traps.

Scans ``train_1_a``, ``train_2_a``, ...: every third in version 1 only (stored values, a header that
says nothing), the first in both, some with two reconstructions that share a report. After them come
the bad ones, one for each reason that `mg3d.data.sources.ct_rate` knows, and a patient of the
validation side, which pre-training must not read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg3d.params import WriteCohort
from mg3d.paths import CT_RATE
from mg3d.phantom.canvas import Grid
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import gzip_stored, nifti, write_nifti_gz
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.ct_rate_tables import (
    LABEL_COLUMNS,
    METADATA_COLUMNS,
    REPORT_COLUMNS,
    label_row,
    metadata_row,
    report_row,
)
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.scan import acquire, draw_grid

NAME = CT_RATE.name
FIXED, RAW = "train_fixed", "train"
BAD = (
    "no_chest",  # the abdomen, and on the list
    "not_given",  # the report says only that
    "no_z_spacing",  # version 1
    "no_metadata",  # version 1
    "never_rescaled",  # stored values under version 2's name
    "truncated",
    "no_report",
    "no_volume",  # a report alone
    "validation",
)


def count(params: WriteCohort) -> int:
    return params.num_ct_rate_scans + len(BAD) if params.num_ct_rate_scans else 0


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    bad = BAD[index - params.num_ct_rate_scans] if index >= params.num_ct_rate_scans else ""
    part = "valid" if bad == "validation" else "train"
    number = 1 if bad == "validation" else index + 1
    patient = Draws(params.seed, NAME, index)
    case = draw_case(patient, patient.child("scan", "a"), index)
    draws = case.draws.child("grid")
    grid = draw_grid(case.anatomy, smaller(params.shape_voxels, 5, 6), draws)
    if bad == "no_chest":
        grid = grid.moved((0.0, 0.0, -2.2 * case.anatomy.half_height_mm))
    version_1 = (index % 3 == 1 and not bad) or bad in ("no_z_spacing", "no_metadata")
    slope, intercept = (2, -1000) if index == 1 else (1, -1024)
    scan_name = f"{part}_{number}_a"
    folder = root / "dataset" / f"{part}_fixed" / f"{part}_{number}" / scan_name
    raw_folder = root / "dataset" / RAW / f"{part}_{number}" / scan_name
    rows = []
    for reconstruction in (1, 2) if index % 6 == 2 and not bad else (1,):
        name = f"{scan_name}_{reconstruction}.nii.gz"
        kernel = "sharp" if reconstruction == 2 else "soft"
        stream = case.draws.child("scan", reconstruction)
        scan = acquire(case.anatomy, case.findings, grid, stream, kernel)
        stored = ((scan.hu.astype(np.int32) - intercept) // slope).astype(np.int16)
        if version_1 or index == 0:
            _write_raw(raw_folder / name, stored)
        if bad == "never_rescaled":
            write_nifti_gz(folder / name, stored, grid)
        elif not version_1 and bad != "no_volume":
            write_nifti_gz(folder / name, scan.hu, grid)
        if bad == "truncated":
            whole = (folder / name).read_bytes()
            (folder / name).write_bytes(whole[: len(whole) // 2])
        rescale = {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)}
        missing = {"ZSpacing": ""} if bad == "no_z_spacing" else {}
        rows.append(
            {
                **report_row(case, name, grid.shape[0], bad == "not_given", index),
                **metadata_row(case, name, scan, **rescale, **missing),
                **label_row(case, name),
                "bad": bad,
            }
        )
    return rows


def _write_raw(path: Path, stored: np.ndarray) -> None:
    """Version 1: voxels (D, H, W) in the scanner's order under a header of unit spacing in RAS at
    the origin, as if nobody had asked."""
    depth, height, width = stored.shape
    corner = (-(width - 1.0), -(height - 1.0), 0.0)
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    nowhere = Grid((depth, height, width), (1.0, 1.0, 1.0), corner, *axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip_stored(nifti(stored[:, ::-1, ::-1], nowhere, "RAS")))


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    dataset = root / "dataset"
    train = [row for row in rows if row["bad"] != "validation"]
    for path, columns, left_out in (
        (dataset / "radiology_text_reports" / "train_reports.csv", REPORT_COLUMNS, "no_report"),
        (dataset / "metadata" / "train_metadata.csv", METADATA_COLUMNS, "no_metadata"),
        (dataset / "multi_abnormality_labels" / "train_predicted_labels.csv", LABEL_COLUMNS, None),
    ):
        kept = (row for row in train if row["bad"] != left_out)
        write_csv(path, columns, ({column: row[column] for column in columns} for row in kept))
    names = [row["VolumeName"] for row in rows if row["bad"] == "no_chest"]
    (dataset / "metadata" / "no_chest_train.txt").write_text("".join(f"{n}\n" for n in names))
