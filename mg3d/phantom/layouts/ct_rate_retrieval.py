"""CT-RATE (spec/downstream 2, 3): version 2 NIfTI, already in HU; reports, metadata, labels.

Scans of patients 1, 2, ...; every eighth patient has scans a and b. Some scans have two
reconstructions that share a report. Two extra scans are bad: one is no chest (and listed), one has
only ``Not given.`` for a report.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_nifti_gz
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

NAME = "ct_rate_retrieval"


def scan_names(num_scans: int) -> list[str]:
    """``valid_1_a``, ``valid_2_a``, ... with a second scan of every eighth patient."""
    names: list[str] = []
    patient = 0
    while len(names) < num_scans:
        patient += 1
        names += [f"valid_{patient}_{letter}" for letter in ("ab" if patient % 8 == 3 else "a")]
    return names[:num_scans]


def count(params: WriteCohort) -> int:
    return params.num_retrieval_cases + 2


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    num_scans = params.num_retrieval_cases
    last = int(scan_names(num_scans)[-1].split("_")[1])
    is_no_chest, is_not_given = index == num_scans, index == num_scans + 1
    scan_name = (
        scan_names(num_scans)[index]
        if index < num_scans
        else f"valid_{last + index - num_scans + 1}_a"
    )
    number, letter = scan_name.split("_")[1:]
    patient = Draws(params.seed, NAME, number)
    case = draw_case(patient, patient.child("scan", letter), int(number))
    draws = case.draws.child("grid")
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    grid = draw_grid(case.anatomy, (depth - draws.integer(0, depth // 5), height, width), draws)
    if is_no_chest:  # the abdomen below the lungs
        grid = grid.moved((0.0, 0.0, -2.2 * case.anatomy.half_height_mm))
    rows = []
    kernels = ("soft", "sharp") if index % 15 == 2 else ("soft",)
    for reconstruction, kernel in enumerate(kernels, 1):
        name = f"{scan_name}_{reconstruction}.nii.gz"
        scan = acquire(
            case.anatomy, case.findings, grid, case.draws.child("scan", reconstruction), kernel
        )
        folder = root / "dataset" / "valid_fixed" / f"valid_{number}" / scan_name
        write_nifti_gz(folder / name, scan.hu, grid)
        rows.append(
            {
                **report_row(case, name, grid.shape[0], is_not_given, index),
                **metadata_row(case, name, scan, **({"ZSpacing": ""} if index == 7 else {})),
                **label_row(case, name),
                "no_chest": "1" if is_no_chest else "",
            }
        )
    return rows


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    dataset = root / "dataset"
    for path, columns in (
        (dataset / "radiology_text_reports" / "validation_reports.csv", REPORT_COLUMNS),
        (dataset / "metadata" / "validation_metadata.csv", METADATA_COLUMNS),
        (dataset / "multi_abnormality_labels" / "valid_predicted_labels.csv", LABEL_COLUMNS),
    ):
        write_csv(path, columns, ({column: row[column] for column in columns} for row in rows))
    names = [row["VolumeName"] for row in rows if row["no_chest"]]
    (dataset / "metadata" / "no_chest_valid.txt").write_text("".join(f"{n}\n" for n in names))
