"""Medical Segmentation Decathlon, Task06 (spec/downstream 9): pairs listed by dataset.json.

Mask 1 = a lung tumour, at times two. As in the original: paths with a leading ``./``, macOS
companions in imagesTr, images without masks in imagesTs, one tumour mask that is empty.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_json, write_nifti_gz
from mg3d.phantom.findings import LOBES, Finding
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller
from mg3d.phantom.scan import acquire, draw_grid

NAME = "msd_lung"
NUM_TEST = 2
EMPTY, THICK = 3, 4  # indices of the case without tumour and of one with thick slices
COMPANION = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # AppleDouble, RFC 1740


def count(params: WriteCohort) -> int:
    return params.num_segmentation_cases + NUM_TEST


def case_name(params: WriteCohort, index: int) -> str:
    """``lung_001``, with holes; training and test share the numbering."""
    return f"lung_{1 + 2 * index + Draws(params.seed, NAME, index, 'id').integer(0, 1):03d}"


def tumours(draws: Draws) -> list[Finding]:
    """A mass in one lobe; in every fourth case a nodule in the other lung."""
    side, other = draws.choice((("right", "left"), ("left", "right")))
    long = draws.integer(36, 60)
    found = [Finding("mass", side, draws.choice(LOBES[side]), (long, long - draws.integer(0, 10)))]
    if draws.chance(0.25):
        size = draws.integer(20, 28)
        found.append(Finding("nodule", other, draws.choice(LOBES[other]), (size, size)))
    return found


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, NAME, index)
    findings = [] if index == EMPTY else tumours(patient.child("tumours"))
    case = draw_case(patient, patient.child("study"), index, findings)
    draws = patient.child("grid")
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    depth = depth * 2 // 3 if index == THICK else depth - draws.integer(0, depth // 5)
    grid = draw_grid(case.anatomy, (depth, height, width), draws)
    scan = acquire(case.anatomy, case.findings, grid, case.draws, draws.choice(("soft", "sharp")))
    name = case_name(params, index)
    folder = root / "Task06_Lung"
    orientation = ("LAS", "RAS")[index % 2]
    if index >= params.num_segmentation_cases:
        write_nifti_gz(folder / "imagesTs" / f"{name}.nii.gz", scan.hu, grid, orientation)
        return [{"image": f"./imagesTs/{name}.nii.gz"}]
    write_nifti_gz(folder / "imagesTr" / f"{name}.nii.gz", scan.hu, grid, orientation)
    mask = scan.tumour.astype(np.uint8)
    write_nifti_gz(folder / "labelsTr" / f"{name}.nii.gz", mask, grid, orientation)
    if index == 0:
        (folder / "imagesTr" / f"._{name}.nii.gz").write_bytes(COMPANION)
    return [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}]


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    training = [row for row in rows if "label" in row]
    test = [row["image"] for row in rows if "label" not in row]
    write_json(
        root / "Task06_Lung" / "dataset.json",
        {
            "name": "Lung",
            "description": "Phantoms in the layout of Task06: no patients",
            "reference": "mg3d write_cohort",
            "licence": "as this repository",
            "release": "1.0",
            "tensorImageSize": "3D",
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "cancer"},
            "numTraining": len(training),
            "numTest": len(test),
            "training": training,
            "test": test,
        },
    )
