"""Stored values of a series -> HU."""

import nibabel
import numpy as np
import pydicom
from pydicom.config import disable_value_validation

from mg3d.data.ct.geometry import Grid
from mg3d.data.ct.header import Refused
from mg3d.ledger import Reason


@disable_value_validation()
def read_volume(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Decode a series -> (int16 [X, Y, Z], affine to RAS mm).

    Axes are reordered and flipped to the closest of R, A and S; an oblique series keeps its oblique
    affine and is not resampled. Raises Refused `undecodable`.
    """
    rows, columns = grid.slices[0].size or (0, 0)
    volume = np.empty((columns, rows, len(grid.slices)), np.int16)
    limits = np.iinfo(np.int16)
    for index, header in enumerate(grid.slices):
        try:
            stored = pydicom.dcmread(header.path, force=True).pixel_array
        except Exception as error:  # decoders meet arbitrary bytes
            raise Refused(Reason.UNDECODABLE, type(error).__name__) from None
        if stored.shape != (rows, columns):
            raise Refused(Reason.UNDECODABLE, f"pixels of shape {stored.shape}")
        slope, intercept = header.rescale or (1.0, 0.0)
        values = np.rint(stored * np.float64(slope) + intercept)
        volume[:, :, index] = np.clip(values, limits.min, limits.max).T
    orientation = nibabel.orientations.io_orientation(grid.affine)
    affine = grid.affine @ nibabel.orientations.inv_ornt_aff(orientation, volume.shape)
    return nibabel.orientations.apply_orientation(volume, orientation), affine
