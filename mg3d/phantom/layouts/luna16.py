"""LUNA16 (spec/downstream 6): ten subsets of MetaImage volumes, candidates, annotations.

A scan has one or two nodules. A candidate lies at a nodule, somewhere in a lung, or at the edge of
the volume. Every seventh nodule has none, every fifth scan has one at an excluded finding. Case 1
is stored with flipped directions, case 2 has thick slices.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.canvas import Vector, add
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_mhd
from mg3d.phantom.findings import LOBES, Finding, draw_findings
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.painting import deform, spot
from mg3d.phantom.scan import acquire, draw_grid

NAME = "luna16"
NUM_SUBSETS, NUM_OTHERS = 10, 14
FLIPPED, THICK = 1, 2
PLACE = ("seriesuid", "coordX", "coordY", "coordZ")
LIKE_NODULES = ("nodule", "mass", "consolidation", "pneumothorax", "atelectasis", "scoliosis")
ALL_LOBES = tuple((side, lobe) for side, lobes in LOBES.items() for lobe in lobes)


def count(params: WriteCohort) -> int:
    return params.num_labelled_cases


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, NAME, index)
    draws = patient.child("nodules")
    has_excluded = index % 5 == 3
    num_nodules = draws.integer(1, 2)
    findings = [f for f in draw_findings(patient.child("other")) if f.kind not in LIKE_NODULES]
    nodules = []
    for side, lobe in draws.shuffled(ALL_LOBES)[: num_nodules + has_excluded]:
        diameter = draws.integer(14, 24)
        nodules.append(Finding("nodule", side, lobe, size_mm=(diameter, diameter)))
    case = draw_case(patient, patient.child("study"), index, [*findings, *nodules])
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    if index == THICK:
        depth //= 2
    grid = draw_grid(case.anatomy, (depth, height, width), patient.child("grid"))
    scan = acquire(case.anatomy, case.findings, grid, case.draws, draws.choice(("soft", "sharp")))
    offset: Vector = (0.0, 0.0, float(draws.integer(-400, 400)))
    grid = grid.moved(offset)

    uid = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{patient.child('uid').digits(30)}"
    write_mhd(root / f"subset{index % NUM_SUBSETS}", uid, scan.hu, grid, index == FLIPPED)
    anatomy = deform(case.anatomy, case.findings)
    painted = ("findings", "nodule")  # the stream that `paint_findings` gives each nodule
    centres = [add(spot(anatomy, n, case.draws.child(*painted)), offset) for n in nodules]
    rows = []
    for number, (centre, nodule) in enumerate(zip(centres, nodules, strict=True)):
        is_excluded = has_excluded and number == num_nodules
        listed = "excluded" if is_excluded else "annotation"
        size = "-1.0" if is_excluded and index % 10 == 3 else f"{nodule.size_mm[0]:.3f}"
        rows.append(_row(listed, uid, centre, diameter_mm=size))
        if is_excluded or (index * 2 + number) % 7 != 6:  # else: out of the candidates' reach
            near = add(centre, _around(draws, 1.5))
            rows.append(_row("candidate", uid, near, **{"class": str(int(not is_excluded))}))
    others: list[Vector] = [grid.position((depth // 2, height // 2, 1))]  # at the border
    while len(others) < NUM_OTHERS:
        place = add(
            anatomy.along(
                draws.choice(("right", "left")),
                draws.uniform(0.15, 0.7),
                draws.uniform(-0.5, 0.5),
                draws.uniform(-0.6, 0.6),
            ),
            offset,
        )
        if all(_square(place, centre) > 20.0**2 for centre in centres):
            others.append(place)
    return rows + [_row("candidate", uid, place, **{"class": "0"}) for place in others]


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    annotations = root / "evaluationScript" / "annotations"
    for path, kind, column in (
        (root / "annotations.csv", "annotation", "diameter_mm"),
        (root / "candidates_V2.csv", "candidate", "class"),
        (annotations / "annotations.csv", "annotation", "diameter_mm"),
        (annotations / "annotations_excluded.csv", "excluded", "diameter_mm"),
    ):
        columns = (*PLACE, column)
        chosen = [{c: row[c] for c in columns} for row in rows if row["kind"] == kind]
        write_csv(path, columns, chosen)


def _row(kind: str, uid: str, place: Vector, **more: str) -> Row:
    x, y, z = (f"{value:.6f}" for value in place)
    return {"kind": kind, "seriesuid": uid, "coordX": x, "coordY": y, "coordZ": z, **more}


def _around(draws: Draws, reach_mm: float) -> Vector:
    x, y, z = (draws.uniform(-reach_mm, reach_mm) for _ in range(3))
    return (x, y, z)


def _square(first: Vector, second: Vector) -> float:
    return sum((a - b) * (a - b) for a, b in zip(first, second, strict=True))
