"""A sampling grid in patient coordinates and the few shapes that are painted on it.

Coordinates are millimetres in LPS (DICOM PS3.3 C.7.6.2.1.1): x grows to the patient's left, y to
the back, z to the head; the origin is the centre of the chest. Arrays are (D, H, W). Arithmetic is
elementwise IEEE + - * / sqrt and comparisons only, so that the voxels are the same everywhere.
"""

from dataclasses import dataclass, replace

import numpy as np

from mg3d.phantom.draws import Draws

Vector = tuple[float, float, float]
Box = tuple[slice, slice, slice]


def add(first: Vector, second: Vector) -> Vector:
    """first + second."""
    return (first[0] + second[0], first[1] + second[1], first[2] + second[2])


def scaled(vector: Vector, factor: float) -> Vector:
    """vector * factor."""
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)


def dot(first: Vector, second: Vector) -> float:
    """Inner product."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    ``right``, ``down`` and ``up`` are the LPS unit vectors along which the W, H and D index grow;
    ``origin_mm`` is the centre of voxel (0, 0, 0); ``spacing_mm`` is (D, H, W).
    """

    shape: tuple[int, int, int]
    spacing_mm: Vector
    origin_mm: Vector
    right: Vector = (1.0, 0.0, 0.0)
    down: Vector = (0.0, 1.0, 0.0)
    up: Vector = (0.0, 0.0, 1.0)

    @property
    def is_oblique(self) -> bool:
        return (self.right, self.down, self.up) != ((1, 0, 0), (0, 1, 0), (0, 0, 1))

    def position(self, index: tuple[int, int, int]) -> Vector:
        """LPS millimetres of the voxel (d, h, w)."""
        result = self.origin_mm
        for step, spacing, axis in zip(
            index, self.spacing_mm, (self.up, self.down, self.right), strict=True
        ):
            result = add(result, scaled(axis, step * spacing))
        return result

    def moved(self, offset: Vector) -> "Grid":
        """The same voxels with the patient elsewhere on the table."""
        return replace(self, origin_mm=add(self.origin_mm, offset))

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z in LPS mm, each broadcastable to (D, H, W); full size only where oblique."""
        steps = [
            (np.arange(size, dtype=np.float64) * spacing).reshape(
                [-1 if axis == other else 1 for other in range(3)]
            )
            for axis, (size, spacing) in enumerate(zip(self.shape, self.spacing_mm, strict=True))
        ]
        if not self.is_oblique:
            return (
                self.origin_mm[0] + steps[2],
                self.origin_mm[1] + steps[1],
                self.origin_mm[2] + steps[0],
            )
        x, y, z = (
            origin + steps[2] * right + steps[1] * down + steps[0] * up
            for origin, right, down, up in zip(
                self.origin_mm, self.right, self.down, self.up, strict=True
            )
        )
        return x, y, z


def rotation(tangent_half: float, axis: int) -> tuple[Vector, Vector, Vector]:
    """Images of the x, y, z unit vectors under a rotation about one axis.

    The angle is 2 atan(tangent_half): a rational rotation, hence no sine and no library-dependent
    last bit.
    """
    square = tangent_half * tangent_half
    cos, sin = (1.0 - square) / (1.0 + square), 2.0 * tangent_half / (1.0 + square)
    rotations: list[tuple[Vector, Vector, Vector]] = [
        ((1.0, 0.0, 0.0), (0.0, cos, sin), (0.0, -sin, cos)),
        ((cos, 0.0, -sin), (0.0, 1.0, 0.0), (sin, 0.0, cos)),
        ((cos, sin, 0.0), (-sin, cos, 0.0), (0.0, 0.0, 1.0)),
    ]
    return rotations[axis]


class Canvas:
    """Voxels under construction, all (D, H, W): ``hu`` int16 and the bool masks ``inside`` (the rib
    cage), ``lung[side]``, ``lesion`` (opacities) and ``tumour`` (nodules and masses)."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.x, self.y, self.z = grid.coordinates()
        self.hu = np.full(grid.shape, -1000, dtype=np.int16)
        self.lesion = np.zeros(grid.shape, dtype=bool)
        self.tumour = np.zeros(grid.shape, dtype=bool)
        self.inside = np.zeros(grid.shape, dtype=bool)
        self.lung: dict[str, np.ndarray] = {}

    def fill(self, region: np.ndarray, hu: int) -> None:
        """Set every voxel of ``region`` (broadcastable bool)."""
        np.copyto(self.hu, np.int16(hu), where=region)

    def box(self, centre: Vector, reach: Vector) -> Box:
        """Index ranges that contain every voxel within ``reach`` (LPS mm) of ``centre``."""
        away = add(centre, scaled(self.grid.origin_mm, -1.0))
        ranges = []
        for size, spacing, axis in zip(
            self.grid.shape,
            self.grid.spacing_mm,
            (self.grid.up, self.grid.down, self.grid.right),
            strict=True,
        ):
            extent = dot(reach, (abs(axis[0]), abs(axis[1]), abs(axis[2])))
            middle = dot(away, axis)
            low = int((middle - extent) / spacing) - 1
            high = int((middle + extent) / spacing) + 2
            ranges.append(slice(min(max(low, 0), size), min(max(high, 0), size)))
        return (ranges[0], ranges[1], ranges[2])

    def local(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z of the voxels in ``box``, broadcastable to its shape."""
        x, y, z = (
            array[
                tuple(
                    part if n > 1 else slice(None) for part, n in zip(box, array.shape, strict=True)
                )
            ]
            for array in (self.x, self.y, self.z)
        )
        return x, y, z

    def ellipsoid(self, centre: Vector, radii: Vector) -> tuple[Box, np.ndarray]:
        """Box and the squared normalised radius in it (1 on the surface)."""
        box = self.box(centre, radii)
        x, y, z = self.local(box)
        u, v, w = (x - centre[0]) / radii[0], (y - centre[1]) / radii[1], (z - centre[2]) / radii[2]
        return box, u * u + v * v + w * w

    def tube(self, start: Vector, end: Vector, reach_mm: float) -> tuple[Box, np.ndarray]:
        """Box and the distance in mm to the segment from ``start`` to ``end``."""
        along = add(end, scaled(start, -1.0))
        reach = (
            abs(along[0]) / 2 + reach_mm,
            abs(along[1]) / 2 + reach_mm,
            abs(along[2]) / 2 + reach_mm,
        )
        box = self.box(scaled(add(start, end), 0.5), reach)
        x, y, z = self.local(box)
        x, y, z = x - start[0], y - start[1], z - start[2]
        length = dot(along, along)
        t = np.minimum(np.maximum((x * along[0] + y * along[1] + z * along[2]) / length, 0.0), 1.0)
        x, y, z = x - t * along[0], y - t * along[1], z - t * along[2]
        return box, np.sqrt(x * x + y * y + z * z)

    def blend(self, box: Box, coverage: np.ndarray, hu: float) -> None:
        """Mix ``hu`` into the box; ``coverage`` is clipped to [0, 1] (partial volume)."""
        part = self.hu[box]
        if part.size:
            weight = np.minimum(np.maximum(coverage, 0.0), 1.0)
            part[...] = np.floor(part + weight * (hu - part) + 0.5).astype(np.int16)

    def draw_ball(
        self, centre: Vector, radius_mm: float, hu: float, is_tumour: bool = False
    ) -> None:
        """A small sphere with partial volume at its edge."""
        margin = radius_mm + self.edge_mm
        box, square = self.ellipsoid(centre, (margin, margin, margin))
        coverage = (radius_mm - np.sqrt(square) * margin) / self.edge_mm + 0.5
        self.blend(box, coverage, hu)
        if is_tumour:
            self.tumour[box] |= coverage >= 0.5

    def draw_tube(self, start: Vector, end: Vector, radius_mm: float, hu: float) -> None:
        """A thin rod with partial volume at its edge."""
        box, distance = self.tube(start, end, radius_mm + self.edge_mm)
        self.blend(box, (radius_mm - distance) / self.edge_mm + 0.5, hu)

    @property
    def edge_mm(self) -> float:
        """Width of the partial-volume ramp: one in-plane voxel."""
        return self.grid.spacing_mm[2]

    def texture(self, draws: Draws, cell_mm: float) -> np.ndarray:
        """Smooth random field in [0, 255], int32 (D, H, W), with blobs of about ``cell_mm``."""
        cells = [max(1, int(cell_mm / spacing + 0.5)) for spacing in self.grid.spacing_mm]
        coarse = [size // cell + 3 for size, cell in zip(self.grid.shape, cells, strict=True)]
        field = (draws.raw(coarse[0] * coarse[1] * coarse[2]) >> np.uint64(56)).astype(np.int32)
        field = field.reshape(coarse)
        for axis, cell in enumerate(cells):
            field = moving_average(np.repeat(field, cell, axis), cell, axis)
            field = field[
                tuple(
                    slice(0, self.grid.shape[axis]) if axis == other else slice(None)
                    for other in range(3)
                )
            ]
        return field


def moving_average(values: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Integer box filter: floor of the mean of ``width`` values; the axis loses width - 1."""
    if width == 1:
        return values
    sums = np.cumsum(values, axis=axis, dtype=np.int64)
    head = np.take(sums, [width - 1], axis)
    rest = (
        sums[tuple(slice(width, None) if axis == a else slice(None) for a in range(values.ndim))]
        - sums[tuple(slice(0, -width) if axis == a else slice(None) for a in range(values.ndim))]
    )
    return (np.concatenate([head, rest], axis) // width).astype(values.dtype)
