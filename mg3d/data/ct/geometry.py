"""Where the slices of a series lie: their order and the affine, from positions alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mg3d.data.ct.header import Header, Refused
from mg3d.ledger import Reason
from mg3d.params import ConvertDicom

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Grid:
    """Slices in order; ``affine`` maps the voxel (column, row, slice) to RAS mm."""

    slices: tuple[Header, ...]
    affine: np.ndarray

    def rank(self) -> tuple[int, int, str]:
        """Sorts the series of a study, the one to use first (see the module's docstring)."""
        coverage_mm = float(np.linalg.norm(self.affine[:3, 2])) * len(self.slices)
        return -round(coverage_mm / 10), -len(self.slices), self.slices[0].series or ""


def arrange(headers: Sequence[Header], params: ConvertDicom) -> Grid:
    """Order slices along their common normal and derive the affine (PS3.3 C.7.6.2.1.1).

    The slice step is the mean vector between neighbouring positions, so a tilted gantry gives a
    sheared affine, not a wrong one. Raises Refused: `too_few_slices`, `mixed_geometry`,
    `duplicate_position`, `missing_slice`.
    """
    if len(headers) < params.min_slices:
        raise Refused(Reason.TOO_FEW_SLICES, f"{len(headers)} < {params.min_slices}")
    first = headers[0]
    for field, tolerance in (("size", 0), ("spacing", 1e-3), ("orientation", 1e-3)):
        values = np.array([getattr(header, field) for header in headers])
        if np.ptp(values, axis=0).max() > tolerance:
            raise Refused(Reason.MIXED_GEOMETRY, f"{field} differs within the series")
    assert first.orientation is not None
    assert first.spacing is not None
    row, column = np.array(first.orientation).reshape(2, 3)
    if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
        raise Refused(Reason.MIXED_GEOMETRY, "ImageOrientationPatient is not orthonormal")
    if min(first.spacing) <= 0:
        raise Refused(Reason.MIXED_GEOMETRY, "PixelSpacing is not positive")

    normal = np.cross(row, column)
    positions = np.array([header.position for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    typical = float(np.median(gaps))
    if gaps.min() < 0.01 or gaps.min() < params.gap_tolerance_fraction * typical:
        raise Refused(Reason.DUPLICATE_POSITION, "two slices at one position")
    if np.abs(gaps - typical).max() > params.gap_tolerance_fraction * typical:
        raise Refused(
            Reason.MISSING_SLICE,
            f"gaps from {gaps.min():.3f} to {gaps.max():.3f} mm, typically {typical:.3f} mm",
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    strays = positions - (positions[0] + np.arange(len(positions))[:, None] * step)
    if np.linalg.norm(strays, axis=1).max() > max(0.5 * typical, 1.0):
        raise Refused(Reason.MIXED_GEOMETRY, "slices are shifted against each other")

    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return Grid(tuple(headers[i] for i in order), LPS_TO_RAS @ affine)
