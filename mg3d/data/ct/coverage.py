"""How much lung a volume holds: a head or an abdomen is no chest.

A slice counts if at least a tenth of what its body encloses is as light as lung. Gas in the bowel
and air between arm and trunk are lighter than lung and do not count.
"""

import numpy as np

BODY_HU = -300
LUNG_HU = (-970, -550)
LUNG_FRACTION = 0.1


def lung_mm(volume: np.ndarray, spacing_mm: float) -> float:
    """Length of lung along z, of HU ``volume`` [X, Y, Z] in RAS with slices ``spacing_mm`` apart.

    Works on every fourth row and column of large slices; a body is enclosed where it lies to the
    left, right, front and back of a voxel.
    """
    every = max(1, min(volume.shape[:2]) // 128)
    count = 0
    for index in range(volume.shape[2]):
        plane = volume[::every, ::every, index]
        body = plane > BODY_HU
        inside = np.ones_like(body)
        for axis in (0, 1):
            for turned, target in ((body, inside), (np.flip(body, axis), np.flip(inside, axis))):
                target &= np.logical_or.accumulate(turned, axis)
        lung = inside & (plane >= LUNG_HU[0]) & (plane <= LUNG_HU[1])
        count += bool(inside.any() and lung.sum() >= LUNG_FRACTION * inside.sum())
    return count * spacing_mm
