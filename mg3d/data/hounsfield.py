"""Do these voxels look like Hounsfield units of a chest?"""

import numpy as np

from mg3d.ledger import Reason

AIR_HU, SOFT_TISSUE_HU = -500, (-300, 300)
MIN_SHARE = 0.01  # of the voxels must be air or lung, and as many soft tissue


def problem(volume: np.ndarray) -> tuple[Reason, str] | None:
    """Why HU values (any shape) cannot be a chest CT, or None.

    Air and soft tissue must be where HU puts them: a volume rescaled twice has no soft tissue, one
    never rescaled has no air (CT-CLIP issue 50).
    """
    if not np.isfinite(volume).all():
        return Reason.NOT_FINITE, ""
    if volume.min() == volume.max():
        return Reason.CONSTANT, ""
    air = float((volume < AIR_HU).mean())
    low, high = SOFT_TISSUE_HU
    soft = float(((volume > low) & (volume < high)).mean())
    if min(air, soft) < MIN_SHARE:
        return Reason.NOT_HU, f"air {air:.1%}, soft tissue {soft:.1%} of the voxels"
    return None
