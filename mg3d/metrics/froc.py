"""FROC and CPM of candidates, as LUNA16 defines them (Setio et al., Medical Image Analysis 2017).

A candidate within a nodule's radius finds it, and the highest probability among those counts; one
within an excluded finding counts as nothing; every other is a false positive.
"""

from dataclasses import dataclass

import numpy as np

OPERATING_POINTS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


@dataclass(frozen=True)
class Detections:
    """One scan: probabilities of its false positives [F] and of its nodules [T], the best among the
    candidates that find each, -inf for a nodule without any."""

    false_positives: np.ndarray
    nodules: np.ndarray


def match(
    points_mm: np.ndarray, probability: np.ndarray, nodules: np.ndarray, excluded: np.ndarray
) -> Detections:
    """``points_mm`` [N, 3], ``probability`` [N]; ``nodules`` and ``excluded`` [M, 4]: a centre in
    the same millimetres and a diameter."""
    inside = _inside(points_mm, nodules)
    best = np.where(inside, probability[:, None], -np.inf).max(0, initial=-np.inf)
    free = ~inside.any(1) & ~_inside(points_mm, excluded).any(1)
    return Detections(probability[free], best)


def _inside(points_mm: np.ndarray, balls: np.ndarray) -> np.ndarray:
    """Bool [N, M]: the point lies within the ball, its surface included."""
    apart = np.linalg.norm(points_mm[:, None] - balls[None, :, :3], axis=-1)
    return apart <= balls[None, :, 3] / 2


def curve(
    false_positives: np.ndarray, nodules: np.ndarray, num_scans: int
) -> tuple[np.ndarray, np.ndarray]:
    """False positives per scan and sensitivity at each distinct probability, from (0, 0) on.

    MONAI's `compute_froc_curve_data` leaves out the lowest threshold, so its curve ends one point
    earlier.
    """
    found = np.sort(nodules[np.isfinite(nodules)])
    wrong = np.sort(false_positives)
    thresholds = np.unique(np.concatenate([found, wrong]))[::-1]
    num_wrong = len(wrong) - np.searchsorted(wrong, thresholds, side="left")
    num_found = len(found) - np.searchsorted(found, thresholds, side="left")
    return (
        np.concatenate([[0.0], num_wrong / num_scans]),
        np.concatenate([[0.0], num_found / max(1, len(nodules))]),
    )


def cpm(false_positives: np.ndarray, nodules: np.ndarray, num_scans: int) -> float:
    """Competition performance metric: mean sensitivity at :data:`OPERATING_POINTS` false positives
    per scan, linear between the curve's points; NaN without nodules."""
    if not len(nodules):
        return float("nan")
    return float(np.mean(sensitivities(false_positives, nodules, num_scans)))


def sensitivities(false_positives: np.ndarray, nodules: np.ndarray, num_scans: int) -> np.ndarray:
    """Sensitivity at each of :data:`OPERATING_POINTS`, [7]."""
    return np.interp(OPERATING_POINTS, *curve(false_positives, nodules, num_scans))
