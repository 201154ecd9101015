"""The healthy chest as voxels: body, ribs, spine, lungs, heart, vessels, airways, diaphragm.

Lengths are proportions of three numbers of the patient: half width, half depth and half lung
height. Proportions are rough averages of adult axial CT; the point is a chest with the right parts
on the right side at the right HU, not an atlas.
"""

from dataclasses import dataclass

import numpy as np

from mg3d.phantom.canvas import Canvas, Vector
from mg3d.phantom.draws import Draws

# The patient's right is at negative x (LPS).
SIGN = {"right": -1.0, "left": 1.0}
BLOOD_HU = 42  # no contrast medium


@dataclass(frozen=True)
class Anatomy:
    """One patient's chest. Millimetres, HU, and the pulls that findings exert on the geometry."""

    sex: str
    half_width_mm: float
    half_depth_mm: float
    half_height_mm: float
    squareness: float
    heart_scale: float = 1.0
    lung_hu: int = -860
    liver_hu: int = 58
    breast_mm: float = 0.0
    dome_drop_mm: float = 0.0
    dome_raise_right_mm: float = 0.0
    dome_raise_left_mm: float = 0.0
    spine_bend_mm: float = 0.0
    wall_mm: float = 1.5

    def at(self, x: float, y: float, z: float) -> Vector:
        """LPS mm of a point given in half widths, half depths and half heights."""
        return (x * self.half_width_mm, y * self.half_depth_mm, z * self.half_height_mm)

    def along(self, side: str, x: float, y: float, z: float) -> Vector:
        """Like :meth:`at` with x counted from the midline towards ``side``."""
        return self.at(SIGN[side] * x, y, z)

    @property
    def heart(self) -> tuple[Vector, Vector]:
        """Centre and radii (mm) of the heart; left of the midline, it grows to the left."""
        grow = self.heart_scale
        return self.at(0.13 + 0.08 * (grow - 1.0), -0.22, -0.40), (
            0.34 * self.half_width_mm * grow,
            0.38 * self.half_depth_mm * grow,
            0.40 * self.half_height_mm * (0.7 + 0.3 * grow),
        )

    @property
    def aorta_mm(self) -> float:
        """Radius of the aorta."""
        return 0.085 * self.half_width_mm


def draw_anatomy(draws: Draws) -> Anatomy:
    """A healthy adult of random sex, size and shape: 300-380 mm wide, 200-260 mm deep."""
    sex = draws.choice(("F", "M"))
    small = 10.0 if sex == "F" else 0.0
    return Anatomy(
        sex=sex,
        half_width_mm=draws.uniform(160.0, 190.0) - small,
        half_depth_mm=draws.uniform(105.0, 130.0) - small / 2,
        half_height_mm=draws.uniform(98.0, 122.0) - small / 2,
        squareness=draws.uniform(0.5, 1.1),
        heart_scale=draws.uniform(0.92, 1.04),
        lung_hu=draws.integer(-880, -835),
        liver_hu=draws.integer(52, 66),
        breast_mm=draws.uniform(18.0, 38.0) if sex == "F" else 0.0,
    )


def paint_anatomy(canvas: Canvas, anatomy: Anatomy, draws: Draws) -> None:
    """Paint the chest on an empty canvas and set ``canvas.lung``."""
    x, y, z = canvas.x, canvas.y, canvas.z
    a, b, h = anatomy.half_width_mm, anatomy.half_depth_mm, anatomy.half_height_mm

    def oval(width: float, depth: float) -> np.ndarray:
        u, v = x / (width * a), y / (depth * b)
        u, v = u * u, v * v
        return u * u + v * v + anatomy.squareness * u * v

    # Table, breasts, skin and fat, muscle.
    canvas.fill((y > b + 8.0) & (y < b + 14.0) & (x > -0.8 * a) & (x < 0.8 * a), -300)
    if anatomy.breast_mm:
        for side in SIGN:
            box, square = canvas.ellipsoid(
                anatomy.along(side, 0.42, -0.88, -0.15),
                (0.30 * a, anatomy.breast_mm, 0.42 * h),
            )
            canvas.blend(box, (square <= 1.0) * 1.0, -70)
    outline = oval(1.0, 1.0)
    canvas.fill(outline <= 1.0, -105)
    canvas.fill(outline <= 0.76, 48)

    # The chest cavity: an oval that closes towards the apex. 1 on its surface.
    top = np.maximum(z / h, 0.0)
    section = oval(0.84, 0.80)
    cavity = section + top * top * top
    inside = cavity <= 1.0
    canvas.inside |= inside

    # Ribs descend towards the front; one every 25 mm, in the wall of the cavity.
    slope = (z - 0.38 * y) / 25.0
    rib = (slope - np.floor(slope)) < 0.38
    front = (y < -0.3 * b) & (x < 0.3 * a) & (x > -0.3 * a)
    wall = (cavity > 1.05) & (cavity <= 1.40) & (section > 0.2) & (z > -1.2 * h)
    canvas.fill(wall & rib & ~front, 420)
    canvas.fill(
        (y > -0.93 * b)
        & (y < -0.82 * b)
        & (x < 0.11 * a)
        & (x > -0.11 * a)
        & (z > -0.5 * h)
        & (z < 0.7 * h),
        220,
    )

    # Upper abdomen under the domes, then the lungs above them.
    flat = 0.45 * h if anatomy.dome_drop_mm == 0.0 else 0.22 * h
    raises = {"right": anatomy.dome_raise_right_mm, "left": anatomy.dome_raise_left_mm - 9.0}
    column = x / (0.20 * a)
    column_y = (y - 0.12 * b) / (0.92 * b)
    mediastinum = column * column + column_y * column_y <= 1.0
    canvas.fill(inside, -90)
    for side, sign in SIGN.items():
        u, v = (x - sign * 0.42 * a) / (0.55 * a), (y + 0.05 * b) / (0.85 * b)
        dome = (raises[side] - 0.60 * h - anatomy.dome_drop_mm) - flat * (u * u + v * v)
        above = z > dome
        half = x * sign > 0.0
        if side == "right":
            canvas.fill(
                inside & (x < 0.22 * a) & ~above & (half | (z < -0.75 * h)), anatomy.liver_hu
            )
        canvas.lung[side] = inside & half & above & ~mediastinum
    for centre, radii, hu in (
        (anatomy.at(0.45, -0.20, -1.12), (0.26 * a, 0.34 * b, 0.30 * h), 30),
        (anatomy.at(0.50, -0.35, -1.05), (0.16 * a, 0.16 * b, 0.15 * h), -950),
        (anatomy.at(0.56, 0.42, -1.10), (0.20 * a, 0.24 * b, 0.30 * h), 50),
    ):
        box, square = canvas.ellipsoid(centre, radii)
        canvas.blend(box, (square <= 1.0) & canvas.inside[box], hu)

    # Mediastinum, heart.
    canvas.fill(mediastinum & inside & (z > -0.95 * h), 30)
    centre, radii = anatomy.heart
    box, square = canvas.ellipsoid(centre, radii)
    heart = square <= 1.0
    canvas.hu[box][heart] = BLOOD_HU
    for side in SIGN:
        canvas.lung[side][box] &= ~heart

    # Lung tissue is denser at the back (gravity); vessels and bronchi leave the hila.
    gravity = np.floor(anatomy.lung_hu + 30.0 * (y / b) + np.zeros_like(z)).astype(np.int16)
    for side in SIGN:
        np.copyto(canvas.hu, gravity, where=canvas.lung[side])
        _paint_vessels(canvas, anatomy, side, draws.child("vessels", side))
    _paint_spine(canvas, anatomy)
    _paint_great_vessels(canvas, anatomy)
    _paint_airways(canvas, anatomy)


def spine_x(anatomy: Anatomy, z: np.ndarray) -> np.ndarray:
    """Sideways position of the spine in mm at height z: a parabola when it is bent."""
    t = z / anatomy.half_height_mm
    return anatomy.spine_bend_mm * (1.0 - t * t)


def _paint_spine(canvas: Canvas, anatomy: Anatomy) -> None:
    x, y, z = canvas.x - spine_x(anatomy, canvas.z), canvas.y, canvas.z
    b = anatomy.half_depth_mm
    v = y - 0.60 * b
    square = x * x + v * v
    level = z / 24.0
    disc = (level - np.floor(level)) < 0.18
    body = square <= 19.0 * 19.0
    canvas.fill(square <= 23.0 * 23.0, 45)
    canvas.fill(body, 190)
    canvas.fill(body & (square > 15.5 * 15.5), 420)
    canvas.fill(body & disc, 80)
    canal = y - (0.60 * b + 27.0)
    square = x * x + canal * canal
    canvas.fill(square <= 13.0 * 13.0, 350)
    canvas.fill(square <= 8.0 * 8.0, 25)
    canvas.fill(
        (x > -4.0)
        & (x < 4.0)
        & (y > 0.60 * b + 38.0)
        & (y < 0.60 * b + 56.0)
        & (y < 0.96 * b)
        & ~disc,
        320,
    )
    for side in SIGN:
        canvas.lung[side] &= ~body


def _paint_great_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    radius, blood = anatomy.aorta_mm, BLOOD_HU
    for start, end in aorta(anatomy):
        canvas.draw_tube(start, end, radius, blood)
    canvas.draw_tube(
        anatomy.at(-0.17, -0.10, -0.05), anatomy.at(-0.16, -0.08, 0.75), 0.6 * radius, blood
    )
    canvas.draw_tube(anatomy.at(0.09, -0.30, -0.08), anatomy.at(0.10, -0.02, 0.12), radius, blood)
    canvas.draw_tube(
        anatomy.at(-0.24, 0.04, 0.04), anatomy.at(0.24, 0.04, 0.10), 0.75 * radius, blood
    )


def aorta(anatomy: Anatomy) -> list[tuple[Vector, Vector]]:
    """Segments of the aorta: ascending, arch, descending (left of the spine)."""
    at = anatomy.at
    return [
        (at(-0.05, -0.22, -0.10), at(-0.07, -0.25, 0.32)),
        (at(-0.07, -0.25, 0.32), at(0.05, 0.02, 0.42)),
        (at(0.05, 0.02, 0.42), at(0.15, 0.34, 0.32)),
        (at(0.15, 0.34, 0.32), at(0.13, 0.36, -1.30)),
    ]


def bronchi(anatomy: Anatomy, side: str) -> list[tuple[Vector, Vector, float]]:
    """Start, end and radius (mm) of the bronchi of one lung, from the carina outwards."""
    at = anatomy.along
    hilum = at(side, 0.20, 0.10, 0.06)
    return [
        (anatomy.at(0.0, 0.10, 0.26), hilum, 6.0),
        (hilum, at(side, 0.36, 0.28, -0.30), 4.0),
        (hilum, at(side, 0.38, -0.05, 0.38), 3.5),
        (at(side, 0.36, 0.28, -0.30), at(side, 0.46, 0.40, -0.52), 3.0),
    ]


def _paint_airways(canvas: Canvas, anatomy: Anatomy) -> None:
    wall = anatomy.wall_mm
    tubes = [(anatomy.at(0.0, 0.02, 1.25), anatomy.at(0.0, 0.10, 0.26), 9.0)]
    for side in SIGN:
        tubes += bronchi(anatomy, side)
    for start, end, radius in tubes:
        canvas.draw_tube(start, end, radius + wall, 20)
    for start, end, radius in tubes:
        canvas.draw_tube(start, end, radius, -1000)


def _paint_vessels(canvas: Canvas, anatomy: Anatomy, side: str, draws: Draws) -> None:
    """Branching arteries: from the hilum to a fork, from the fork to two ends."""
    lung = canvas.lung[side]
    before = canvas.hu.copy()
    hilum = anatomy.along(side, 0.22, 0.06, 0.02)
    for _ in range(6):
        height = draws.uniform(-0.55, 0.75)
        fork = anatomy.along(
            side, draws.uniform(0.34, 0.5), draws.uniform(-0.3, 0.35), 0.6 * height
        )
        canvas.draw_tube(hilum, fork, draws.uniform(3.0, 4.5), 35)
        for _ in range(2):
            end = anatomy.along(
                side,
                draws.uniform(0.45, 0.72),
                draws.uniform(-0.5, 0.6),
                height + draws.uniform(-0.2, 0.2),
            )
            canvas.draw_tube(fork, end, draws.uniform(1.2, 2.4), 10)
    np.copyto(canvas.hu, before, where=~lung)
