"""Slices that are no rectangular grid -> one, by linear interpolation.

In the plane each slice moves by its own shift (a tilted gantry); across, new slices are means of
their two neighbours weighted by distance (gaps). Slices that lie on the grid keep their values.
"""

import numpy as np
from scipy import ndimage


def to_grid(
    volume: np.ndarray, origins: np.ndarray, shape: tuple[int, int, int], fill: int
) -> np.ndarray:
    """int16 [columns, rows, slices] -> int16 of ``shape``; see `Grid` for ``origins``.

    ``fill`` HU is what lies outside of the slices.
    """
    moved = np.full((*shape[:2], volume.shape[2]), fill, np.int16)
    for index, (column, row) in enumerate(origins[:, :2]):
        whole = np.floor([column + 1e-9, row + 1e-9]).astype(int)
        plane = np.pad(volume[:, :, index].astype(np.float32), (0, 1), constant_values=fill)
        fraction = (column - whole[0], row - whole[1])
        if max(fraction) > 1e-6:
            plane = ndimage.shift(plane, fraction, order=1, mode="grid-constant", cval=fill)
        target = moved[whole[0] :, whole[1] :, index][: plane.shape[0], : plane.shape[1]]
        target[:] = np.rint(plane[: target.shape[0], : target.shape[1]])
    depths = origins[:, 2]
    if np.array_equal(depths, np.arange(shape[2])):
        return moved
    result = np.empty(shape, np.int16)
    for index in range(shape[2]):
        above = min(int(np.searchsorted(depths, index)), len(depths) - 1)
        below = max(above - 1, 0) if depths[above] > index else above
        span = depths[above] - depths[below]
        weight = (index - depths[below]) / span if span else 0.0
        mixed = (1 - weight) * moved[:, :, below] + weight * moved[:, :, above]
        result[:, :, index] = np.rint(mixed)
    return result
