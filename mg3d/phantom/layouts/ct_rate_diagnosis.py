"""CT-RATE with both sides (spec/downstream 2): version 2, already HU, and 18 labels a volume.

Scans of ``train_1 ...`` for training and, half as many, of ``valid_1 ...`` for testing; every sixth
has a second reconstruction. The last scan of the validation side is no chest, and listed.
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

NAME = "ct_rate_diagnosis"
TABLES = {"train": "train", "valid": "validation"}


def count(params: WriteCohort) -> int:
    return params.num_labelled_cases * 3 // 2 + 1


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    num_train = params.num_labelled_cases
    part = "train" if index < num_train else "valid"
    number = index + 1 if part == "train" else index - num_train + 1
    is_no_chest = index == count(params) - 1
    patient = Draws(params.seed, NAME, index)
    case = draw_case(patient, patient.child("scan", "a"), index)
    draws = case.draws.child("grid")
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    grid = draw_grid(case.anatomy, (depth - draws.integer(0, depth // 5), height, width), draws)
    if is_no_chest:  # the abdomen below the lungs
        grid = grid.moved((0.0, 0.0, -2.2 * case.anatomy.half_height_mm))
    rows = []
    for reconstruction, kernel in enumerate(("soft", "sharp") if index % 6 == 2 else ("soft",), 1):
        stream = case.draws.child("scan", reconstruction)
        scan = acquire(case.anatomy, case.findings, grid, stream, kernel)
        name = f"{part}_{number}_a_{reconstruction}.nii.gz"
        folder = root / "dataset" / f"{part}_fixed" / f"{part}_{number}" / f"{part}_{number}_a"
        write_nifti_gz(folder / name, scan.hu, grid)
        rows.append(
            {
                **report_row(case, name, grid.shape[0], False, index),
                **metadata_row(case, name, scan),
                **label_row(case, name),
                "part": part,
                "no_chest": "1" if is_no_chest else "",
            }
        )
    return rows


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    dataset = root / "dataset"
    for part, table in TABLES.items():
        of_part = [row for row in rows if row["part"] == part]
        for path, columns in (
            (dataset / "radiology_text_reports" / f"{table}_reports.csv", REPORT_COLUMNS),
            (dataset / "metadata" / f"{table}_metadata.csv", METADATA_COLUMNS),
            (dataset / "multi_abnormality_labels" / f"{part}_predicted_labels.csv", LABEL_COLUMNS),
        ):
            write_csv(
                path, columns, ({column: row[column] for column in columns} for row in of_part)
            )
        names = [row["VolumeName"] for row in of_part if row["no_chest"]]
        (dataset / "metadata" / f"no_chest_{part}.txt").write_text("".join(f"{n}\n" for n in names))
