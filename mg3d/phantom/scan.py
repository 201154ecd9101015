"""From a patient with findings to a volume as a scanner reconstructs it: grid, kernel, noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mg3d.phantom.anatomy import Anatomy, paint_anatomy
from mg3d.phantom.canvas import Canvas, Grid, Vector, add, rotation, scaled
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import Finding
from mg3d.phantom.painting import deform, paint_findings

NOISE_SD = 209  # standard deviation of the sum of eight bytes


@dataclass(frozen=True)
class Scan:
    """``hu`` int16, ``lesion`` and ``tumour`` bool, (D, H, W), on ``grid``; ``kernel`` is soft or
    sharp."""

    grid: Grid
    hu: np.ndarray
    lesion: np.ndarray
    tumour: np.ndarray
    kernel: str


def draw_grid(
    anatomy: Anatomy,
    shape: tuple[int, int, int],
    draws: Draws,
    oblique: bool = False,
    stretch: float = 1.0,
) -> Grid:
    """A grid around the chest, tilted by 4 to 12 degrees if ``oblique``.

    ``stretch`` > 1 makes pixels taller than wide (non-square pixel spacing).
    """
    depth, height, width = shape
    across = 2.0 * anatomy.half_width_mm + draws.uniform(14.0, 26.0)
    pixel = int(1000.0 * across / width) / 1000.0
    row = max(pixel * stretch, (2.0 * anatomy.half_depth_mm + 36.0) / height)
    length = 2.0 * anatomy.half_height_mm + draws.uniform(62.0, 80.0)
    spacing = (int(1000.0 * length / depth) / 1000.0, int(1000.0 * row) / 1000.0, pixel)
    right, down, up = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    if oblique:
        right, down, up = rotation(
            draws.choice((-1.0, 1.0)) * draws.uniform(0.035, 0.105), draws.integer(0, 2)
        )
    centre = (draws.uniform(-4.0, 4.0), draws.uniform(0.0, 6.0), draws.uniform(-16.0, -8.0))
    origin: Vector = centre
    for axis, size, step in zip((up, down, right), shape, spacing, strict=True):
        origin = add(origin, scaled(axis, -0.5 * (size - 1) * step))
    return Grid(shape, spacing, origin, right, down, up)


def acquire(
    anatomy: Anatomy, findings: Sequence[Finding], grid: Grid, draws: Draws, kernel: str
) -> Scan:
    """Paint the patient on the grid and add the kernel's blur and integer noise."""
    canvas = Canvas(grid)
    deformed = deform(anatomy, findings)
    paint_anatomy(canvas, deformed, draws.child("anatomy"))
    paint_findings(canvas, deformed, findings, draws.child("findings"))
    hu = canvas.hu.astype(np.int32)
    noise = bell_noise(grid.shape, draws.child("noise"))
    if kernel == "soft":
        hu, noise = _blur(hu), _blur(noise)
        level = draws.integer(12, 24)
    else:
        level = draws.integer(22, 40)
    hu += (noise * level) // NOISE_SD
    return Scan(
        grid, np.clip(hu, -1024, 3071).astype(np.int16), canvas.lesion, canvas.tumour, kernel
    )


def bell_noise(shape: tuple[int, int, int], draws: Draws) -> np.ndarray:
    """Bell-shaped integers, mean 0: each the sum of the eight bytes of one random word."""
    words = draws.raw(shape[0] * shape[1] * shape[2])
    even = np.uint64(0x00FF00FF00FF00FF)
    pairs = (words & even) + ((words >> np.uint64(8)) & even)
    quads = (pairs + (pairs >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    total = (quads + (quads >> np.uint64(32))) & np.uint64(0xFFFF)
    return (total.astype(np.int32) - 1020).reshape(shape)


def _blur(values: np.ndarray) -> np.ndarray:
    """In-plane (1, 2, 1) / 4 along both axes, integer, edges repeated."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:] + 8) >> 4
