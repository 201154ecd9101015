"""ACDC (spec/downstream 10): ``database/training`` and ``testing``, a folder per patient.

The end-diastolic and end-systolic frames with their masks; frame numbers vary and are in Info.cfg.
The whole cine, ``patient001_4d.nii.gz``, is left out: no reader needs it.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_nifti_gz
from mg3d.phantom.heart import acquire_heart, draw_heart, short_axis_grid
from mg3d.phantom.layouts import Row

NAME = "acdc"
TEST_EVERY = 3  # as officially, a third of the patients is for testing


def count(params: WriteCohort) -> int:
    """Patients; each is two cases."""
    return params.num_segmentation_cases // 2


def patient_folder(index: int) -> str:
    """``training/patient001`` or ``testing/patient101``."""
    if index % TEST_EVERY == TEST_EVERY - 1:
        return f"testing/patient{101 + index // TEST_EVERY:03d}"
    return f"training/patient{1 + index - index // TEST_EVERY:03d}"


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, NAME, index)
    heart = draw_heart(patient.child("heart"))
    grid = short_axis_grid(heart, params.shape_voxels[1:], patient.child("grid"))
    draws = patient.child("info")
    diastole = draws.choice((1, 1, 2, 4))
    systole = diastole + draws.integer(7, 12)
    folder = root / "database" / patient_folder(index)
    for number, contracted in ((diastole, False), (systole, True)):
        image, classes = acquire_heart(grid, heart, contracted, patient, patient.child(number))
        stem = f"{folder.name}_frame{number:02d}"
        write_nifti_gz(folder / f"{stem}.nii.gz", image, grid, "LAS")
        write_nifti_gz(folder / f"{stem}_gt.nii.gz", classes, grid, "LAS")
    info = {
        "ED": diastole,
        "ES": systole,
        "Group": heart.group,
        "Height": f"{draws.integer(150, 195)}.0",
        "NbFrame": systole + draws.integer(8, 16),
        "Weight": f"{draws.integer(48, 110)}.0",
    }
    lines = "".join(f"{key}: {value}\n" for key, value in info.items())
    (folder / "Info.cfg").write_text(lines)
    (folder / "MANDATORY_CITATION.md").write_text("A phantom: no patient, nothing to cite.\n")
    return []


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    """The layout has none."""
