"""STOIC2021 (spec/downstream 6): MetaImage volumes and ``metadata/reference.csv``.

COVID is bilateral peripheral ground-glass opacity; severe disease covers more of the lungs and
consolidates. Everyone may have unrelated findings. The last case is an invalid row: severe without
COVID.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_mha
from mg3d.phantom.findings import Finding, draw_findings
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.scan import acquire, draw_grid

NAME = "stoic2021"
COLUMNS = ("PatientID", "probCOVID", "probSevere")
LOOKS_LIKE_COVID = (
    "ground_glass", "consolidation", "fibrosis", "mosaic", "septal_thickening", "pneumothorax",
)  # fmt: skip
# Two of five negative, the others half mild, half severe.
STATES = ((0, 0), (1, 0), (1, 1), (0, 0), (1, 0), (0, 0), (1, 1), (0, 0), (1, 0), (1, 1))


def count(params: WriteCohort) -> int:
    return params.num_labelled_cases + 1


def patient_number(params: WriteCohort, index: int) -> int:
    """The PatientID: an integer, not contiguous."""
    return 11 + 7 * index + Draws(params.seed, NAME, index, "id").integer(0, 6)


def state(params: WriteCohort, index: int) -> tuple[int, int]:
    """(probCOVID, probSevere) of a case."""
    if index == params.num_labelled_cases:
        return (0, 1)
    states = [STATES[n % len(STATES)] for n in range(params.num_labelled_cases)]
    return Draws(params.seed, NAME, "states").shuffled(states)[index]


def covid_findings(is_severe: int, draws: Draws) -> list[Finding]:
    """Mild: some patches; severe: many, with consolidation of one or both lower lobes."""
    findings = [Finding("ground_glass", "both", severity=2 if is_severe else 1)]
    if is_severe:
        sides = ("right", "left") if draws.chance(0.5) else (draws.choice(("right", "left")),)
        findings += [Finding("consolidation", side, "lower lobe", severity=1) for side in sides]
    return findings


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    has_covid, is_severe = state(params, index)
    patient = Draws(params.seed, NAME, index)
    findings = [
        finding
        for finding in draw_findings(patient.child("other"))
        if finding.kind not in LOOKS_LIKE_COVID
    ]
    if has_covid:
        findings += covid_findings(is_severe, patient.child("covid"))
    case = draw_case(patient, patient.child("study"), index, findings)
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    draws = patient.child("grid")
    depth -= draws.integer(0, depth // 5)
    if index == 0:  # thick slices: strongly anisotropic
        depth //= 2
    grid = draw_grid(case.anatomy, (depth, height, width), draws)
    scan = acquire(case.anatomy, case.findings, grid, case.draws, draws.choice(("soft", "sharp")))
    hu = scan.hu
    if index == 1:  # shorter than any crop: the middle half only
        grid = grid.moved((0.0, 0.0, depth // 4 * grid.spacing_mm[0]))
        hu = hu[depth // 4 : depth // 4 + depth // 2]
    number = patient_number(params, index)
    keys = {
        "PatientAge": f"{case.person.age // 10 * 10 + 5:03d}Y",  # a band, as in the original
        "PatientSex": case.person.sex,
    }
    offset = (0.0, 0.0, float(draws.integer(-400, 400)))
    write_mha(root / "data" / "mha" / f"{number}.mha", hu, grid.moved(offset), keys)
    return [{"PatientID": str(number), "probCOVID": str(has_covid), "probSevere": str(is_severe)}]


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    write_csv(root / "metadata" / "reference.csv", COLUMNS, rows)
