"""A beating heart in short-axis MR: left ventricle, myocardium, right ventricle at two phases.

The left cavity is half an ellipsoid from the base down to the apex, the myocardium a shell around
it that keeps its volume, the right ventricle a crescent on the patient's right. At end-systole the
base has come down by a tenth and the radii are such that the planted fraction was ejected. Sizes
are rough averages of adult cine MR. Lengths in mm; the base is up (LPS z).
"""

from dataclasses import dataclass

import numpy as np

from mg3d.phantom.canvas import Canvas, Grid, rotation
from mg3d.phantom.draws import Draws
from mg3d.phantom.scan import NOISE_SD, bell_noise

RV, MYOCARDIUM, LV = 1, 2, 3
GROUPS = ("DCM", "HCM", "MINF", "NOR", "RV")
SHORTENING = 0.1  # of the long axis at end-systole
HALF_FIELD_MM = 72.0
BLOOD, MUSCLE, LUNG, WALL, LIVER, FAT = 200, 95, 24, 130, 105, 185


@dataclass(frozen=True)
class Heart:
    """One patient's heart at end-diastole, and what it ejects (fractions of the volume)."""

    group: str
    lv_radius_mm: float
    lv_length_mm: float
    wall_mm: float
    rv_radius_mm: float
    lv_ejection: float
    rv_ejection: float
    turn: float  # tangent of half the angle of the septum

    def systole(self) -> "Heart":
        """The same heart contracted; its volumes are (1 - ejection) of before."""
        left, right = (
            float(np.sqrt((1 - ejection) / (1 - SHORTENING)))
            for ejection in (self.lv_ejection, self.rv_ejection)
        )
        radius = self.lv_radius_mm * left
        shell = self.wall_mm * (2 * self.lv_radius_mm + self.wall_mm)  # of the squared radii
        return Heart(
            group=self.group,
            lv_radius_mm=radius,
            lv_length_mm=self.lv_length_mm * (1 - SHORTENING),
            wall_mm=float(np.sqrt(radius * radius + shell / (1 - SHORTENING))) - radius,
            rv_radius_mm=self.rv_radius_mm * right,
            lv_ejection=self.lv_ejection,
            rv_ejection=self.rv_ejection,
            turn=self.turn,
        )


def draw_heart(draws: Draws) -> Heart:
    """A heart of one of ACDC's five groups."""
    group = draws.choice(GROUPS)
    radius, wall, right = draws.uniform(21, 25), draws.uniform(7.5, 9.5), draws.uniform(17, 21)
    left_ejection, right_ejection = draws.uniform(0.55, 0.68), draws.uniform(0.45, 0.6)
    if group == "DCM":
        radius, left_ejection = draws.uniform(27, 31), draws.uniform(0.15, 0.35)
    elif group == "HCM":
        wall, left_ejection = draws.uniform(12, 15), draws.uniform(0.62, 0.72)
    elif group == "MINF":
        left_ejection = draws.uniform(0.25, 0.40)
    elif group == "RV":
        right, right_ejection = draws.uniform(24, 28), draws.uniform(0.25, 0.4)
    length = draws.uniform(72, 88)
    turn = draws.uniform(-0.15, 0.15)
    return Heart(group, radius, length, wall, right, left_ejection, right_ejection, turn)


def short_axis_grid(heart: Heart, shape: tuple[int, int], draws: Draws) -> Grid:
    """A stack (D, H, W) of ``shape`` (H, W) from below the apex to above the base."""
    height, width = shape
    thick = draws.choice((7.0, 8.0, 8.0, 9.0))
    pixel = int(1000.0 * draws.uniform(1.9, 2.1) * HALF_FIELD_MM / width) / 1000.0
    depth = int((heart.lv_length_mm + heart.wall_mm + 2.0 * thick) / thick) + 1
    bottom = -0.5 * heart.lv_length_mm - heart.wall_mm - draws.uniform(0.4, 1.0) * thick
    across = -0.5 * pixel * (width - 1) + draws.uniform(-8.0, 8.0)
    along = -0.5 * pixel * (height - 1) + draws.uniform(-8.0, 8.0)
    return Grid((depth, height, width), (thick, pixel, pixel), (across, along, bottom))


def classes(canvas: Canvas, heart: Heart, apex_mm: float) -> np.ndarray:
    """uint8 (D, H, W): RV, MYOCARDIUM, LV where they are; the apex of the cavity is at ``apex_mm``.

    Nothing above the base: atria are no class.
    """
    (c, s, _), *_ = rotation(heart.turn, 2)
    x, y = c * canvas.x + s * canvas.y, c * canvas.y - s * canvas.x
    base = apex_mm + heart.lv_length_mm
    down = base - canvas.z
    ventricles = down >= 0
    radius = x * x + y * y

    def taper(length: float) -> np.ndarray:
        return 1.0 - (down / length) * (down / length)

    outer = heart.lv_radius_mm + heart.wall_mm
    cavity = ventricles & (
        radius <= heart.lv_radius_mm * heart.lv_radius_mm * taper(heart.lv_length_mm)
    )
    shell = ventricles & (radius <= outer * outer * taper(heart.lv_length_mm + heart.wall_mm))
    u = (x + outer) / (1.3 * heart.rv_radius_mm)
    v = (y + 4.0) / (1.7 * heart.rv_radius_mm)
    right = ventricles & (u * u + v * v <= taper(0.85 * heart.lv_length_mm)) & (x < 0) & ~shell
    labels = np.zeros(canvas.grid.shape, np.uint8)
    labels[np.broadcast_to(right, labels.shape)] = RV
    labels[np.broadcast_to(shell, labels.shape)] = MYOCARDIUM
    labels[np.broadcast_to(cavity, labels.shape)] = LV
    return labels


def acquire_heart(
    grid: Grid, heart: Heart, contracted: bool, patient: Draws, frame: Draws
) -> tuple[np.ndarray, np.ndarray]:
    """Image int16 and classes uint8, (D, H, W), of one frame; ``patient`` draws what both share.

    Arbitrary units: tissue times a coil's bias field and a gain, with noise; 0 outside the body.
    """
    canvas = Canvas(grid)
    apex = -0.5 * heart.lv_length_mm
    phase = heart.systole() if contracted else heart
    labels = classes(canvas, phase, apex)
    base = apex + phase.lv_length_mm
    x, y, z = canvas.x, canvas.y, canvas.z
    body = np.broadcast_to((x / 88.0) ** 2 + (y / 76.0) ** 2 <= 1.0, grid.shape)
    canvas.fill(np.ones(grid.shape, bool), LUNG)
    canvas.fill(y < -50.0 + 0.004 * x * x, WALL)
    canvas.fill(y < -60.0 + 0.004 * x * x, FAT)
    canvas.fill((z < apex + 14.0) & (x < -14.0) & (y > 0.0), LIVER)
    outer = phase.lv_radius_mm + phase.wall_mm
    atrium = (x / outer) ** 2 + ((y - 8.0) / outer) ** 2 <= 0.7
    canvas.fill((z > base) & atrium, BLOOD)
    near = np.pad(labels == RV, ((0, 0), (1, 1), (1, 1)))
    wall = near[:, :-2, 1:-1] | near[:, 2:, 1:-1] | near[:, 1:-1, :-2] | near[:, 1:-1, 2:]
    canvas.fill(wall & (labels == 0), MUSCLE)
    for label, value in ((RV, BLOOD), (MYOCARDIUM, MUSCLE), (LV, BLOOD)):
        canvas.fill(labels == label, value)
    for side in (-1.0, 1.0):  # papillary muscles belong to the cavity
        at = (side * 0.45 * phase.lv_radius_mm, 0.5 * phase.lv_radius_mm)
        muscle = (x - at[0]) ** 2 + (y - at[1]) ** 2 <= 12.0
        canvas.fill(muscle & (labels == LV) & (z < apex + 0.6 * phase.lv_length_mm), MUSCLE)
    coil = patient.child("coil")
    gain, tilt_x, tilt_y = coil.uniform(0.6, 2.5), coil.uniform(-0.3, 0.3), coil.uniform(-0.35, 0.1)
    bowl = coil.uniform(-0.2, 0.1)
    u, v = x / HALF_FIELD_MM, y / HALF_FIELD_MM
    bias = 1.0 + tilt_x * u + tilt_y * v + bowl * (u * u + v * v)
    texture = canvas.texture(frame.child("texture"), 12.0) - 128
    tissue = canvas.hu.astype(np.int32) + texture // 12
    grain = (bell_noise(grid.shape, frame.child("noise")) * frame.integer(7, 12)) // NOISE_SD
    signal = np.floor(gain * (np.maximum(bias, 0.2) * tissue + grain))
    image = np.where(body, np.clip(signal, 1, 4000), 0)
    return image.astype(np.int16), labels
