"""Where the slices of a series lie: their order and the affine, from positions alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mg3d.data.ct.header import Header
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason
from mg3d.params import DicomVolumes

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_POSITION_MM = 0.01


@dataclass(frozen=True)
class Grid:
    """Slices in order; ``affine`` maps the voxel (column, row, slice) to RAS mm.

    Slices that are no rectangular grid (a tilted gantry, a gap) are resampled to one: ``origins``
    [slices, 3] are the voxels of the grid where each slice's first pixel lies, and ``shape`` is its
    size; None where the slices are the grid.
    """

    slices: tuple[Header, ...]
    affine: np.ndarray
    origins: np.ndarray | None = None
    shape: tuple[int, int, int] | None = None

    def rank(self) -> tuple[int, int, str]:
        """Sorts the series of a study, the one to use first (see `mg3d.data.dicom`)."""
        num_slices = len(self.slices) if self.shape is None else self.shape[2]
        coverage_mm = float(np.linalg.norm(self.affine[:3, 2])) * num_slices
        return -round(coverage_mm / 10), -len(self.slices), self.slices[0].series or ""


def normal_of(header: Header) -> np.ndarray:
    """Unit normal [3] of a slice in LPS: row direction times column direction."""
    row, column = np.array(header.orientation).reshape(2, 3)
    return np.cross(row, column)


def arrange(headers: Sequence[Header], params: DicomVolumes) -> Grid:
    """Order slices along their common normal and derive the affine (PS3.3 C.7.6.2.1.1).

    The slice step is the mean vector between neighbouring positions. If it leaves the normal by
    more than a pixel over the stack, the gantry was tilted, whatever GantryDetectorTilt says.
    Raises Refused: `too_few_slices`, `mixed_geometry`, `mixed_orientation`, `duplicate_position`,
    `missing_slice` (gaps are multiples of the typical one), `variable_spacing` (they are not),
    `gantry_tilt`.
    """
    if len(headers) < params.min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"{len(headers)} < {params.min_slices}")
    spacing, row, column = _common_plane(headers)
    normal = np.cross(row, column)
    positions = np.array([header.position for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    indices = _indices(positions @ normal, params)  # of the slices, in typical gaps

    step = (positions[-1] - positions[0]) / indices[-1]
    strays = positions - (positions[0] + indices[:, None] * step)
    if np.linalg.norm(strays, axis=1).max() > max(0.5 * step @ normal, 1.0):
        raise Refused(Reason.MIXED_GEOMETRY, "slices are shifted against each other")

    origins = np.zeros((len(indices), 3))
    origins[:, 2] = indices
    origin = positions[0]
    drift_mm = np.linalg.norm(step - step @ normal * normal) * indices[-1]
    if drift_mm > min(spacing) and params.gantry_tilt != "keep":
        if params.gantry_tilt == "quarantine":
            degrees = np.degrees(np.arccos(step @ normal / np.linalg.norm(step)))
            raise Refused(Reason.GANTRY_TILT, f"{degrees:.1f} degrees")
        shift = np.outer(indices, (step @ row / spacing[1], step @ column / spacing[0]))
        first = shift.min(axis=0)
        origins[:, :2] = shift - first
        origin = origin + first[0] * spacing[1] * row + first[1] * spacing[0] * column
        step = step @ normal * normal

    affine = np.eye(4)
    affine[:3, 0] = row * spacing[1]
    affine[:3, 1] = column * spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    grid = Grid(tuple(headers[i] for i in order), LPS_TO_RAS @ affine)
    if not origins[:, :2].any() and np.array_equal(indices, np.arange(len(indices))):
        return grid
    rows, columns = headers[0].size or (0, 0)
    extra = np.ceil(origins.max(axis=0) - 1e-6).astype(int)
    num_slices = int(np.floor(indices[-1] + 1e-6)) + 1
    shape = (columns + int(extra[0]), rows + int(extra[1]), num_slices)
    return Grid(grid.slices, grid.affine, origins, shape)


def _common_plane(headers: Sequence[Header]) -> tuple[tuple[float, ...], np.ndarray, np.ndarray]:
    """PixelSpacing, row and column direction of slices that share them."""
    reasons = {"orientation": Reason.MIXED_ORIENTATION}
    for field, tolerance in (("size", 0), ("spacing", 1e-3), ("orientation", 1e-3)):
        values = np.array([getattr(header, field) for header in headers])
        if np.ptp(values, axis=0).max() > tolerance:
            reason = reasons.get(field, Reason.MIXED_GEOMETRY)
            raise Refused(reason, f"{field} differs within the series")
    first = headers[0]
    assert first.orientation is not None
    assert first.spacing is not None
    row, column = np.array(first.orientation).reshape(2, 3)
    if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise Refused(Reason.MIXED_GEOMETRY, "ImageOrientationPatient is not orthonormal")
    if min(first.spacing) <= 0:
        raise Refused(Reason.MIXED_GEOMETRY, "PixelSpacing is not positive")
    return first.spacing, row, column


def _indices(depths: np.ndarray, params: DicomVolumes) -> np.ndarray:
    """Sorted depths [slices] in mm -> index of each slice on a regular grid; whole ones if it is.

    Missing slices leave holes in the indices; under variable spacing the grid's step is the typical
    gap and indices are fractions.
    """
    gaps = np.diff(depths)
    typical = float(np.median(gaps))
    tolerance = params.gap_tolerance_fraction * typical
    if gaps.min() < SAME_POSITION_MM or gaps.min() < tolerance:
        raise Refused(Reason.DUPLICATE_POSITION, "two slices at one position")
    if np.abs(gaps - typical).max() <= tolerance:
        return np.arange(len(depths))
    steps = np.rint(gaps / typical)
    missing = steps.min() >= 1 and np.abs(gaps - steps * typical).max() <= tolerance
    if params.gap_policy == "quarantine" or gaps.max() > params.max_gap_mm:
        raise Refused(
            Reason.MISSING_SLICE if missing else Reason.VARIABLE_SPACING,
            f"gaps from {gaps.min():.3f} to {gaps.max():.3f} mm, typically {typical:.3f} mm",
        )
    if missing:
        return np.concatenate([[0.0], np.cumsum(steps)])
    return (depths - depths[0]) / typical
