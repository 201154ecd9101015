"""Lesions as things, not voxels: which were found, which were invented.

A lesion is a connected component (26 neighbours). Predicted and true lesions are paired one to one,
the best overlap first, where their intersection over union is above a threshold; 0.1 is usual for
lesions in 3D, whose outlines are uncertain. Everything unpaired is missed or false.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

MIN_IOU = 0.1


@dataclass(frozen=True)
class LesionCounts:
    """Lesions found, invented and missed."""

    found: int
    false: int
    missed: int


def count_lesions(
    predicted: np.ndarray, reference: np.ndarray, min_iou: float = MIN_IOU
) -> LesionCounts:
    """Counts for two masks of one shape (X, Y, Z); pairs need an IoU above ``min_iou``."""
    assert predicted.shape == reference.shape
    touching = np.ones((3, 3, 3), int)
    of_predicted, num_predicted = ndimage.label(predicted, touching)
    of_reference, num_reference = ndimage.label(reference, touching)
    both = (of_predicted > 0) & (of_reference > 0)
    pairs, shared = np.unique(
        np.stack([of_predicted[both], of_reference[both]]), axis=1, return_counts=True
    )
    sizes_p = np.bincount(of_predicted.ravel())
    sizes_r = np.bincount(of_reference.ravel())
    iou = shared / (sizes_p[pairs[0]] + sizes_r[pairs[1]] - shared)
    taken_p: set[int] = set()
    taken_r: set[int] = set()
    for place in np.argsort(-iou, kind="stable"):
        p, r = (int(number) for number in pairs[:, place])
        if iou[place] > min_iou and p not in taken_p and r not in taken_r:
            taken_p.add(p)
            taken_r.add(r)
    return LesionCounts(len(taken_p), num_predicted - len(taken_p), num_reference - len(taken_r))


def lesion_f1(found: float, false: float, missed: float) -> float:
    """2 found / (2 found + false + missed); NaN where there is no lesion at all."""
    total = 2 * found + false + missed
    return 2 * found / total if total else float("nan")
