"""CTRG-Chest (spec/downstream 4): ``chest_ctrg_jpg.json`` and one folder of JPG slices per study.

8-bit slices with the window burned in and no spacing, named 1.jpg, 2.jpg, ..., 10.jpg from the head
down. Two studies share their text word for word, one report is long, one holds a rare word.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg3d.params import WriteCohort
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_jpeg, write_json
from mg3d.phantom.findings import CATALOGUE, Finding, draw_finding
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller
from mg3d.phantom.reports import prose
from mg3d.phantom.scan import acquire, draw_grid

NAME = "ctrg_report"
LIST_NAME = "chest_ctrg_jpg.json"
WINDOW_HU = (-1000, 400)
TWIN, TWIN_OF, LONG, RARE = 5, 4, 6, 7
LONG_KINDS = (
    "consolidation", "septal_thickening", "bronchiectasis", "nodule", "lymphadenopathy",
    "cardiomegaly", "pericardial_effusion", "coronary_calcification", "aortic_calcification",
    "hiatal_hernia", "rib_fracture", "device", "scoliosis", "steatosis",
)  # fmt: skip
BOILERPLATE = (
    "All findings were reviewed on axial, coronal and sagittal reformats in lung, soft tissue and"
    " bone windows, and the images were compared side by side with the clinical question in mind."
)
RARE_SENTENCE = "The chest shows no dextrocardia."


def count(params: WriteCohort) -> int:
    return params.num_labelled_cases


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    # The twin has the findings and the words of its twin, but its own anatomy and noise.
    words = TWIN_OF if index == TWIN else index
    patient = Draws(params.seed, NAME, index)
    findings: list[Finding] | None = None
    if index == LONG:
        stream = patient.child("many")
        findings = [
            draw_finding(kind, stream.child(kind)) for kind in CATALOGUE if kind in LONG_KINDS
        ]
    text_case = draw_case(
        Draws(params.seed, NAME, words), Draws(params.seed, NAME, words, "study"), words, findings
    )
    case = draw_case(patient, patient.child("study"), index, text_case.findings)
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    depth = max(12, depth * 3 // 4)
    grid = draw_grid(case.anatomy, (depth, height, width), patient.child("grid"))
    scan = acquire(case.anatomy, case.findings, grid, case.draws, "soft")
    folder = Path("Chest_CTRG_JPG") / f"{index + 1:04d}"
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(window_8bit(scan.hu)[::-1], 1):
        write_jpeg(root / folder / f"{number}.jpg", pixels)
    report = text_case.report(depth)
    sentences = list(report.findings)
    if index == LONG:
        sentences += [BOILERPLATE] * 2
    if index == RARE:
        sentences.append(RARE_SENTENCE)
    items = [f"{n}. {sentence}" for n, sentence in enumerate(report.impression, 1)]
    entry = {
        "image_path": folder.as_posix(),
        "report": prose(sentences),
        "result": prose(items),
    }
    return [{"entry": json.dumps(entry, ensure_ascii=False)}]


def window_8bit(hu: np.ndarray) -> np.ndarray:
    """HU int16 to grey uint8 through :data:`WINDOW_HU`, rounded down."""
    low, high = WINDOW_HU
    return ((np.clip(hu, low, high).astype(np.int32) - low) * 255 // (high - low)).astype(np.uint8)


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    write_json(root / LIST_NAME, [json.loads(row["entry"]) for row in rows])
