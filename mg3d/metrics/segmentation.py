"""Overlap and surface distances of one case, in native voxels and millimetres.

Conventions, fixed here once. Reference empty: Dice, HD, HD95 and NSD are NaN (not 0, not 1), and
the false-positive volume is what that case is judged by. Prediction empty, reference not: Dice 0,
NSD 0, and HD and HD95 are the diagonal of the image, the largest distance there is, so that
predicting nothing never pays. HD95 is MONAI's: the larger of the two directed 95th percentiles.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Overlap:
    """Scores of one case; volumes in millilitres."""

    dice: float
    hd95_mm: float
    hd_mm: float
    nsd: float
    volume_ml: float
    reference_volume_ml: float


def overlap(
    predicted: np.ndarray,
    reference: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float = 2.0,
) -> Overlap:
    """Dice, Hausdorff distances and normalised surface Dice of two masks (X, Y, Z).

    The surface Dice is at ``tolerance_mm``. ``spacing_mm`` is the true spacing of the same three
    axes. NSD uses sub-voxel surface areas (DeepMind's surface-distance). Raises
    ValueError if the shapes differ.
    """
    if predicted.shape != reference.shape:
        raise ValueError(
            f"prediction {predicted.shape} and reference {reference.shape} differ in shape: "
            "the prediction must lie on the image's own grid"
        )
    predicted, reference = predicted.astype(bool), reference.astype(bool)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    volume, reference_volume = predicted.sum() * voxel_ml, reference.sum() * voxel_ml
    if not reference.any():
        nan = float("nan")
        return Overlap(nan, nan, nan, nan, float(volume), 0.0)
    if not predicted.any():
        diagonal = float(np.linalg.norm(np.array(reference.shape) * np.array(spacing_mm)))
        return Overlap(0.0, diagonal, diagonal, 0.0, 0.0, float(reference_volume))

    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    # Outside the common bounding box nothing is measured; a margin keeps the surfaces closed.
    inside = np.argwhere(predicted | reference)
    low, high = np.maximum(inside.min(axis=0) - 2, 0), inside.max(axis=0) + 3
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    p = torch.from_numpy(np.ascontiguousarray(np.pad(predicted[box], 1)))[None, None]
    r = torch.from_numpy(np.ascontiguousarray(np.pad(reference[box], 1)))[None, None]
    whole: Any = {"include_background": True, "spacing": spacing_mm}  # one channel: the lesion
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns about its own calls
        hd95 = compute_hausdorff_distance(p, r, percentile=95, **whole)
        hd = compute_hausdorff_distance(p, r, **whole)
        nsd = compute_surface_dice(p, r, [tolerance_mm], use_subvoxels=True, **whole)
    intersection = float((predicted & reference).sum())
    dice = 2 * intersection / float(predicted.sum() + reference.sum())
    return Overlap(
        dice=dice,
        hd95_mm=float(hd95.item()),
        hd_mm=float(hd.item()),
        nsd=float(nsd.item()),
        volume_ml=float(volume),
        reference_volume_ml=float(reference_volume),
    )
