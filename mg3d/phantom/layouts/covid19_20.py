"""COVID-19-20 (spec/downstream 7): NIfTI pairs under ``Train``, images alone under ``Validation``.

Mask 1 = ground-glass opacity or consolidation. Odd names and bad inputs as in the original: ids
with holes, one series suffix, LAS and RAS files, an empty mask, a mask without image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_nifti_gz
from mg3d.phantom.findings import LOBES, Finding
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller
from mg3d.phantom.scan import acquire, draw_grid

NAME = "covid19_20"
NUM_VALIDATION = 4
SUFFIXED, EMPTY = 2, 3  # indices of the case with a series suffix and of the case without lesion


def count(params: WriteCohort) -> int:
    return params.num_segmentation_cases + 1 + NUM_VALIDATION


def case_stem(params: WriteCohort, index: int) -> str:
    """File name up to ``_ct`` or ``_seg``."""
    number = 3 + 4 * index + Draws(params.seed, NAME, index, "id").integer(0, 3)
    return f"volume-covid19-A-{number:04d}" + ("_1" if index == SUFFIXED else "")


def lesions(draws: Draws) -> list[Finding]:
    """Ground glass in one or both lungs, at times consolidation in one lobe of each."""
    findings = [
        Finding(
            "ground_glass",
            draws.choice(("both", "both", "right", "left")),
            severity=draws.integer(0, 2),
        )
    ]
    if draws.chance(0.5):
        side = draws.choice(("right", "left"))
        findings.append(
            Finding("consolidation", side, draws.choice(LOBES[side]), severity=draws.integer(0, 1))
        )
    return findings


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, NAME, index)
    findings = [] if index == EMPTY else lesions(patient.child("lesions"))
    case = draw_case(patient, patient.child("study"), index, findings)
    draws = patient.child("grid")
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    grid = draw_grid(case.anatomy, (depth - draws.integer(0, depth // 5), height, width), draws)
    scan = acquire(case.anatomy, case.findings, grid, case.draws, draws.choice(("soft", "sharp")))
    orientation = "RAS" if index % 2 else "LAS"
    stem = case_stem(params, index)
    is_orphan = index == params.num_segmentation_cases
    folder = root / ("Validation" if index > params.num_segmentation_cases else "Train")
    if not is_orphan:
        write_nifti_gz(folder / f"{stem}_ct.nii.gz", scan.hu, grid, orientation)
    if folder.name == "Train":
        mask = scan.lesion.astype(np.uint8)
        write_nifti_gz(folder / f"{stem}_seg.nii.gz", mask, grid, orientation)
    return []


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    """The layout has none."""
