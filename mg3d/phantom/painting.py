"""How each finding changes the chest: first the anatomy it deforms, then the voxels it paints."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mg3d.phantom.anatomy import SIGN, Anatomy, aorta, bronchi
from mg3d.phantom.canvas import Canvas, Vector, add
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import Finding

FLUID_HU = 12
Painter = Callable[[Canvas, Anatomy, Finding, Draws], None]

# Middle of each lobe in (half widths from the midline, half depths, half heights).
LOBE_CENTRES: dict[str, Vector] = {
    "upper lobe": (0.44, -0.05, 0.40),
    "middle lobe": (0.46, -0.38, -0.16),
    "lower lobe": (0.46, 0.38, -0.30),
}


def deform(anatomy: Anatomy, findings: Sequence[Finding]) -> Anatomy:
    """The anatomy under the findings that change shape or tissue rather than add to it."""
    for finding in findings:
        grade = finding.severity
        match finding.kind:
            case "cardiomegaly":
                anatomy = replace(anatomy, heart_scale=anatomy.heart_scale * (1.27 + 0.13 * grade))
            case "atelectasis":
                lift = 34.0 + 16.0 * grade
                anatomy = (
                    replace(anatomy, dome_raise_right_mm=lift)
                    if finding.side == "right"
                    else replace(anatomy, dome_raise_left_mm=lift)
                )
            case "emphysema":
                anatomy = replace(
                    anatomy,
                    dome_drop_mm=18.0 + 9.0 * grade,
                    lung_hu=-935 - 12 * grade,
                    half_depth_mm=anatomy.half_depth_mm * (1.03 + 0.03 * grade),
                    heart_scale=anatomy.heart_scale * (0.92 - 0.04 * grade),
                )
            case "scoliosis":
                anatomy = replace(anatomy, spine_bend_mm=SIGN[finding.side] * (20.0 + 8.0 * grade))
            case "steatosis":
                anatomy = replace(anatomy, liver_hu=12 - 25 * grade)
            case "peribronchial_thickening":
                anatomy = replace(anatomy, wall_mm=5.0)
    return anatomy


def lobe_region(canvas: Canvas, anatomy: Anatomy, side: str, lobe: str) -> np.ndarray:
    """Voxels of one lobe, bool (D, H, W): the oblique fissure falls from the back to the front."""
    h = anatomy.half_height_mm
    fissure = -0.125 * h + 0.475 * h * (canvas.y / anatomy.half_depth_mm)
    behind = canvas.z < fissure
    lung = canvas.lung[side]
    if lobe == "lower lobe":
        return lung & behind
    middle = (canvas.z < 0.05 * h) if side == "right" else (canvas.z < -10.0 * h)
    return lung & ~behind & (middle if lobe == "middle lobe" else ~middle)


def spot(anatomy: Anatomy, finding: Finding, draws: Draws) -> Vector:
    """LPS mm of a finding in a lobe; ``draws`` is the stream of its kind."""
    x, y, z = LOBE_CENTRES[finding.location]
    return anatomy.along(
        finding.side,
        x + draws.uniform(-0.1, 0.1),
        y + draws.uniform(-0.12, 0.12),
        z + draws.uniform(-0.1, 0.1),
    )


def _pleural_effusion(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    level = (0.10, -0.18, -0.50)[finding.severity]
    for side in finding.sides:
        depth = 0.62 * (canvas.y / anatomy.half_depth_mm) - canvas.z / anatomy.half_height_mm
        canvas.fill(canvas.lung[side] & (depth > level + 0.45), FLUID_HU)


def _pneumothorax(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # The lung shrinks towards its hilum and grows denser; around it is air without vessels.
    side = finding.side
    shrink = (0.80, 0.58)[finding.severity]
    a, b, h = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.half_height_mm
    u = (canvas.x - SIGN[side] * 0.36 * a) / (0.46 * a * shrink)
    v = (canvas.y - 0.12 * b) / (0.80 * b * shrink)
    w = (canvas.z + 0.15 * h) / (1.05 * h * shrink)
    kept = u * u + v * v + w * w <= 1.0
    canvas.fill(canvas.lung[side] & ~kept, -1000)
    collapsed = canvas.lung[side] & kept & (canvas.hu < -600)
    canvas.fill(collapsed, -720 + 120 * finding.severity)


def _consolidation(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Irregular edge from a texture; air bronchograms stay where the airways are.
    reach = (0.75, 1.0, 1.45)[finding.severity]
    a, b, h = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.half_height_mm
    centre = spot(anatomy, finding, draws)
    u = (canvas.x - centre[0]) / (0.30 * a * reach)
    v = (canvas.y - centre[1]) / (0.42 * b * reach)
    w = (canvas.z - centre[2]) / (0.36 * h * reach)
    edge = u * u + v * v + w * w + (canvas.texture(draws, 18.0) - 128) / 220.0
    region = lobe_region(canvas, anatomy, finding.side, finding.location) & (edge <= 1.0)
    canvas.lesion |= region
    canvas.fill(region & (canvas.hu > -985), draws.integer(15, 50))


def _ground_glass(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Subpleural patches; vessels stay visible because the opacity is added, not painted over.
    a, b, h = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.half_height_mm
    amount = draws.integer(260, 390)
    patch = np.zeros(canvas.grid.shape, dtype=bool)
    for side in finding.sides:
        for _ in range(3 + 3 * finding.severity):
            centre = anatomy.along(
                side,
                draws.uniform(0.36, 0.68),
                draws.uniform(-0.4, 0.62),
                draws.uniform(-0.45, 0.6),
            )
            size = draws.uniform(0.8, 1.3) * (0.9 + 0.2 * finding.severity)
            box, square = canvas.ellipsoid(
                centre, (0.20 * a * size, 0.30 * b * size, 0.22 * h * size)
            )
            patch[box] |= (square <= 1.0) & canvas.lung[side][box]
    patch &= canvas.hu > -985
    canvas.lesion |= patch
    canvas.hu[patch] = np.minimum(canvas.hu[patch] + np.int16(amount), 60)


def _atelectasis(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # The collapsed base lies on the raised diaphragm.
    side = finding.side
    depth = 0.5 * (canvas.y / anatomy.half_depth_mm) - canvas.z / anatomy.half_height_mm
    canvas.fill(canvas.lung[side] & (depth > 0.42 - 0.12 * finding.severity), 38)
    start = anatomy.along(side, 0.25, 0.1, -0.12)
    canvas.draw_tube(start, anatomy.along(side, 0.66, 0.1, -0.06), 4.0, 20)


def _emphysema(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Bullae in the upper zones, each with a thin wall.
    for side in SIGN:
        for _ in range(2 + 2 * finding.severity):
            centre = anatomy.along(
                side, draws.uniform(0.3, 0.6), draws.uniform(-0.4, 0.4), draws.uniform(0.2, 0.72)
            )
            radius = draws.uniform(9.0, 15.0) + 3.0 * finding.severity
            box, square = canvas.ellipsoid(centre, (radius, radius, radius))
            lung = canvas.lung[side][box]
            canvas.hu[box][lung & (square <= 1.0)] = -780
            canvas.hu[box][lung & (square <= 0.66)] = -1000


def _fibrosis(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Basal and subpleural reticulation: alternating thick lines and holes.
    a, b, h = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.half_height_mm
    u, v = canvas.x / (0.84 * a), canvas.y / (0.80 * b)
    rim = u * u + v * v - 0.45 * (canvas.z / h) > 0.72 - 0.14 * finding.severity
    net = canvas.texture(draws, 7.0)
    for side in SIGN:
        zone = canvas.lung[side] & rim & (canvas.z < 0.25 * h)
        canvas.fill(zone, -560)
        canvas.fill(zone & (net > 145), -120)
        canvas.fill(zone & (net < 95), -930)


def _mosaic(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    dark = canvas.texture(draws, 34.0) > 128
    for side in SIGN:
        tissue = canvas.lung[side] & (canvas.hu < -600)
        canvas.fill(tissue & dark, -925)
        canvas.fill(tissue & ~dark, -690)


def _septal_thickening(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Polygonal lines: three families of planes 26 mm apart.
    lines = np.zeros(canvas.grid.shape, dtype=bool)
    for family in (
        canvas.x + 0.3 * canvas.y + 0.4 * canvas.z,
        canvas.y - 0.3 * canvas.x + 0.5 * canvas.z,
        canvas.z + 0.4 * canvas.x - 0.6 * canvas.y,
    ):
        phase = family / 26.0 + draws.fraction()
        lines |= (phase - np.floor(phase)) < 0.16
    for side in SIGN:
        canvas.fill(canvas.lung[side] & lines & (canvas.hu < -300), -430)


def _peribronchial_thickening(
    canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws
) -> None:
    """The walls are thicker already (see :func:`deform`); outer bronchi become visible."""
    for side in SIGN:
        fork = bronchi(anatomy, side)[1][1]
        for _ in range(4):
            end = anatomy.along(
                side, draws.uniform(0.5, 0.7), draws.uniform(-0.2, 0.6), draws.uniform(-0.45, 0.4)
            )
            canvas.draw_tube(fork, end, 6.5, -60)
            canvas.draw_tube(fork, end, 2.5, -1000)


def _bronchiectasis(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # A cluster of wide, walled airways in the lower lobe: rings in cross-section.
    for side in finding.sides:
        root = bronchi(anatomy, side)[1][1]
        ends = [
            anatomy.along(
                side,
                draws.uniform(0.36, 0.66),
                draws.uniform(0.2, 0.62),
                draws.uniform(-0.6, -0.35),
            )
            for _ in range(6)
        ]
        for end in ends:
            canvas.draw_tube(root, end, 9.0, 20)
        for end in ends:
            canvas.draw_tube(root, end, 5.5, -1000)


def _nodule(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    long, short = finding.size_mm
    centre = spot(anatomy, finding, draws)
    canvas.draw_ball(centre, (long + short) / 4.0, 45, is_tumour=True)


def _mass(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Lobulated: a core and four lobules on its surface; total extent = the reported diameters.
    long, short = finding.size_mm
    centre = spot(anatomy, finding, draws)
    radii = (0.42 * short, 0.42 * short, 0.5 * long)
    box, square = canvas.ellipsoid(centre, radii)
    coverage = (1.0 - square) * 4.0
    canvas.blend(box, coverage, 40)
    canvas.tumour[box] |= coverage >= 0.5
    for _ in range(4):
        shift = (
            draws.uniform(-0.28, 0.28) * short,
            draws.uniform(-0.28, 0.28) * short,
            draws.uniform(-0.25, 0.25) * long,
        )
        canvas.draw_ball(add(centre, shift), 0.22 * short, 40, is_tumour=True)


def _lymphadenopathy(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Right paratracheal, prevascular and subcarinal nodes that bulge into the lungs.
    radius = finding.size_mm[0] / 2.0 + 3.0
    for x, y, z in (
        (-0.19, -0.02, 0.46),
        (-0.20, 0.04, 0.22),
        (0.20, -0.18, 0.36),
        (0.02, 0.2, 0.1),
    ):
        canvas.draw_ball(anatomy.at(x, y, z), radius, 40)


def _pericardial_effusion(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    width = 9.0 + 7.0 * finding.severity
    centre, radii = anatomy.heart
    outer = (radii[0] + width, radii[1] + width, radii[2] + width)
    box, square = canvas.ellipsoid(centre, outer)
    x, y, z = canvas.local(box)
    u, v, w = ((x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2])
    outside = u * u + v * v + w * w > 1.0
    sac = (square <= 1.0) & outside & canvas.inside[box] & (canvas.hu[box] < 35)
    canvas.hu[box][sac] = 2
    for side in SIGN:
        canvas.lung[side][box] &= ~sac


def _coronary_calcification(
    canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws
) -> None:
    # Beads along the left anterior descending and right coronary arteries.
    centre, radii = anatomy.heart
    paths = [
        ((0.10, -0.75, 0.62), (0.62, -0.72, -0.10)),
        ((-0.52, -0.62, 0.50), (-0.72, -0.40, -0.30)),
    ]
    for start, end in paths[: 1 + (finding.severity > 0)]:
        for bead in range(2 + 2 * finding.severity):
            t = (bead + draws.uniform(0.2, 0.8)) / (2 + 2 * finding.severity)
            point = (
                centre[0] + radii[0] * (start[0] + t * (end[0] - start[0])),
                centre[1] + radii[1] * (start[1] + t * (end[1] - start[1])),
                centre[2] + radii[2] * (start[2] + t * (end[2] - start[2])),
            )
            canvas.draw_ball(point, 4.0 + 0.8 * finding.severity, 1100)


def _aortic_calcification(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Plaques in the wall of the arch and the descending aorta.
    radius = anatomy.aorta_mm
    segments = aorta(anatomy)[1:] if finding.severity else aorta(anatomy)[1:3]
    phase = canvas.texture(draws, 16.0)
    for start, end in segments:
        box, distance = canvas.tube(start, end, radius + 3.0)
        wall = (distance > radius - 3.0) & (distance < radius + 2.5)
        canvas.hu[box][wall & (phase[box] > 150 - 14 * finding.severity)] = 900


def _hiatal_hernia(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # Stomach behind the heart with an air-fluid level (air in front, the patient lies on the back).
    long, short = finding.size_mm
    centre = anatomy.at(0.03, 0.30, -0.52)
    box, square = canvas.ellipsoid(centre, (0.5 * long, 0.5 * short, 0.5 * long))
    inside = square <= 1.0
    canvas.hu[box][inside] = 35
    _, y, _ = canvas.local(box)
    canvas.hu[box][(square <= 0.72) & (y < centre[1])] = -900
    for side in SIGN:
        canvas.lung[side][box] &= ~inside


def _rib_fracture(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    # A gap in the lateral rib with dense callus above and below it, displaced outwards.
    height = 0.55 - 0.22 * (int(finding.location) - 4)
    gap = anatomy.along(finding.side, 0.885, 0.05, height)
    outward = 5.0 * SIGN[finding.side]
    for step in (-11.0, 11.0):
        canvas.draw_ball(add(gap, (outward, step, step * 0.4)), 8.5, 850)
    canvas.draw_ball(gap, 5.5, 20)


def _device(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    at = anatomy.at
    if finding.location == "sternal wires":
        for level in range(5):
            z = -0.35 + 0.22 * level
            canvas.draw_tube(at(-0.10, -0.90, z), at(0.10, -0.90, z), 3.5, 2600)
        return
    side = "left" if finding.location == "pacemaker" else "right"
    pocket = anatomy.along(side, 0.52, -0.80, 0.62)
    size = (24.0, 9.0, 24.0) if finding.location == "pacemaker" else (14.0, 9.0, 14.0)
    box, square = canvas.ellipsoid(pocket, size)
    canvas.hu[box][square <= 1.0] = 3000
    vein = at(-0.16, -0.08, 0.60)
    tip = anatomy.heart[0] if finding.location == "pacemaker" else at(-0.17, -0.10, 0.05)
    canvas.draw_tube(pocket, vein, 2.8, 2200)
    canvas.draw_tube(vein, tip, 2.8, 2200)


def _nothing_more(canvas: Canvas, anatomy: Anatomy, finding: Finding, draws: Draws) -> None:
    """The anatomy is deformed already."""


PAINTERS: dict[str, Painter] = {
    "emphysema": _emphysema,
    "mosaic": _mosaic,
    "fibrosis": _fibrosis,
    "septal_thickening": _septal_thickening,
    "ground_glass": _ground_glass,
    "peribronchial_thickening": _peribronchial_thickening,
    "bronchiectasis": _bronchiectasis,
    "nodule": _nodule,
    "mass": _mass,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "lymphadenopathy": _lymphadenopathy,
    "hiatal_hernia": _hiatal_hernia,
    "pericardial_effusion": _pericardial_effusion,
    "pleural_effusion": _pleural_effusion,
    "coronary_calcification": _coronary_calcification,
    "aortic_calcification": _aortic_calcification,
    "rib_fracture": _rib_fracture,
    "device": _device,
    "cardiomegaly": _nothing_more,
    "scoliosis": _nothing_more,
    "steatosis": _nothing_more,
}


def paint_findings(
    canvas: Canvas, anatomy: Anatomy, findings: Sequence[Finding], draws: Draws
) -> None:
    """Paint all findings on a healthy chest, in the order of :data:`PAINTERS`.

    Diffuse lung disease comes before what covers it. ``canvas.lesion`` collects the voxels of
    ground-glass opacity and consolidation, ``canvas.tumour`` those of nodules and masses.
    """
    order = list(PAINTERS)
    for finding in sorted(findings, key=lambda item: order.index(item.kind)):
        PAINTERS[finding.kind](canvas, anatomy, finding, draws.child(finding.kind))
