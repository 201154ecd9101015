"""CC-CCII (spec/downstream 5): ``{CP,NCP,Normal}/<patient>/<scan>/<slice>.{png,jpg}``, its lists.

NCP is mild bilateral ground-glass opacity, CP a small consolidation of one lobe, Normal neither.
Everyone may have unrelated findings. JPG folders are named 1.jpg ... 10.jpg, PNG folders 0000.png
...; which it is does not depend on the class. Every sixth patient has two scans. The last patient
is a scan that is known to be bad.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_jpeg, write_png
from mg3d.phantom.findings import LOBES, Finding, draw_findings
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.ctrg_report import window_8bit
from mg3d.phantom.layouts.stoic2021 import LOOKS_LIKE_COVID
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.scan import acquire, draw_grid

NAME = "cc_ccii"
CLASSES = ("Normal", "CP", "NCP")
KNOWN_BAD = ("CP", "1781", "3567")
LIST_COLUMNS = ("zip_file", "label", "patient_id", "scan_id", "n_slice")
METADATA_COLUMNS = (
    "patient_id", "scan_id", "Age", "Sex(Male1/Female2)", "Critical_illness", "Liver_function",
    "Lung_function", "Progression (Days)",
)  # fmt: skip


def count(params: WriteCohort) -> int:
    return params.num_labelled_cases + 1


def findings_of(label: str, draws: Draws) -> list[Finding]:
    """What makes the class."""
    if label == "NCP":
        return [Finding("ground_glass", "both")]
    if label == "CP":
        side = draws.choice(("right", "left"))
        return [Finding("consolidation", side, draws.choice(LOBES[side]))]
    return []


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, NAME, index)
    label, number = CLASSES[index % 3], str(1000 + 3 * index)
    scan_ids = [str(2000 + 7 * index + n) for n in range(2 if index % 6 == 4 else 1)]
    if index == params.num_labelled_cases:
        label, number, scan_ids = KNOWN_BAD[0], KNOWN_BAD[1], [KNOWN_BAD[2]]
    findings = [
        finding
        for finding in draw_findings(patient.child("other"))
        if finding.kind not in LOOKS_LIKE_COVID
    ]
    findings += findings_of(label, patient.child("class"))
    rows = []
    for scan_id in scan_ids:
        case = draw_case(patient, patient.child("scan", scan_id), index, findings)
        draws = patient.child("grid", scan_id)
        depth, height, width = smaller(params.shape_voxels, 5, 6)
        depth = max(12, depth * 3 // 4 - draws.integer(0, depth // 6))
        grid = draw_grid(case.anatomy, (depth, height, width), draws)
        scan = acquire(case.anatomy, case.findings, grid, case.draws, "soft")
        folder = root / label / number / scan_id
        folder.mkdir(parents=True)
        is_png = draws.chance(0.5)
        for place, pixels in enumerate(window_8bit(scan.hu)[::-1]):
            if is_png:
                write_png(folder / f"{place:04d}.png", pixels)
            else:
                write_jpeg(folder / f"{place + 1}.jpg", pixels)
        archive = "COVID19" if label == "NCP" and index % 2 else label
        rows.append(
            {
                "zip_file": f"{archive}-{1 + index % 2}.zip",
                "label": label,
                "patient_id": number,
                "scan_id": scan_id,
                "n_slice": str(depth),
                "Age": str(case.person.age),
                "Sex(Male1/Female2)": "1" if case.person.sex == "M" else "2",
            }
        )
    return rows


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    for name, columns in (
        ("unzip_filenames.csv", LIST_COLUMNS),
        ("metadata.csv", METADATA_COLUMNS),
    ):
        write_csv(root / name, columns, ({c: row.get(c, "") for c in columns} for row in rows))
