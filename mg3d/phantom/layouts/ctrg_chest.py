"""CTRG-Chest (spec/downstream 4) for pre-training: the list, and a folder of JPG slices per study.

The layout of `ctrg_report`, other patients. After the good studies come the bad ones, one for each
reason that `mg3d.data.sources.ctrg_chest` knows.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.paths import CTRG_CHEST
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_jpeg, write_json
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.ctrg_report import LIST_NAME, window_8bit
from mg3d.phantom.layouts.tables import smaller
from mg3d.phantom.reports import prose
from mg3d.phantom.scan import acquire, draw_grid

NAME = CTRG_CHEST.name
TWIN, TWIN_OF = 3, 2  # word for word the same report
BAD = ("no_folder", "no_report", "broken_slice", "gap", "clutter")


def count(params: WriteCohort) -> int:
    return params.num_ctrg_studies + len(BAD) if params.num_ctrg_studies else 0


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    bad = BAD[index - params.num_ctrg_studies] if index >= params.num_ctrg_studies else ""
    patient = Draws(params.seed, NAME, index)
    words = Draws(params.seed, NAME, TWIN_OF if index == TWIN else index)
    text_case = draw_case(words, words.child("study"), index)
    case = draw_case(patient, patient.child("study"), index, text_case.findings)
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    grid = draw_grid(case.anatomy, (max(12, depth), height, width), patient.child("grid"))
    folder = Path("Chest_CTRG_JPG") / f"{index + 1:04d}"
    if bad != "no_folder":
        scan = acquire(case.anatomy, case.findings, grid, case.draws, "soft")
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(window_8bit(scan.hu)[::-1], 1):
            write_jpeg(root / folder / f"{number}.jpg", pixels)
    if bad == "broken_slice":
        fifth = root / folder / "5.jpg"
        fifth.write_bytes(fifth.read_bytes()[:200])
    elif bad == "gap":
        (root / folder / "7.jpg").unlink()
    elif bad == "clutter":
        (root / folder / "._1.jpg").write_bytes(b"\x00\x05\x16\x07")
        (root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    report = text_case.report(depth)
    items = [f"{number}. {sentence}" for number, sentence in enumerate(report.impression, 1)]
    entry = {
        "image_path": folder.as_posix(),
        "report": "" if bad == "no_report" else prose(report.findings),
        "result": "" if bad == "no_report" else prose(items),
    }
    return [{"entry": json.dumps(entry, ensure_ascii=False)}]


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    write_json(root / LIST_NAME, [json.loads(row["entry"]) for row in rows])
