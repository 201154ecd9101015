import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from mg3d.metrics.segmentation import overlap

SPACING_MM = (1.0, 2.0, 5.0)


def box(start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros((24, 20, 16), dtype=bool)
    mask[tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))] = True
    return mask


def test_perfect() -> None:
    mask = box((5, 5, 5), (6, 4, 3))
    scores = overlap(mask, mask, SPACING_MM)
    assert (scores.dice, scores.hd95_mm, scores.hd_mm, scores.nsd) == (1, 0, 0, 1)
    assert scores.volume_ml == scores.reference_volume_ml == pytest.approx(6 * 4 * 3 * 10 / 1000)


@pytest.mark.parametrize(("axis", "shift_mm"), [(0, 1.0), (1, 2.0), (2, 5.0)])
def test_shift_by_one_voxel_is_measured_in_millimetres(axis: int, shift_mm: float) -> None:
    start = [5, 5, 5]
    reference = box((5, 5, 5), (6, 6, 6))
    start[axis] += 1
    scores = overlap(box(tuple(start), (6, 6, 6)), reference, SPACING_MM)  # type: ignore[arg-type]
    assert scores.dice == pytest.approx(5 / 6)
    assert scores.hd95_mm == pytest.approx(shift_mm)
    assert (scores.nsd == 1) == (shift_mm <= 2)


def test_hd95_agrees_with_distance_transforms() -> None:
    generator = np.random.default_rng(0)
    predicted, reference = (box((4, 4, 3), (10, 8, 8)) & (generator.random((24, 20, 16)) < 0.9)
                            for _ in range(2))  # fmt: skip
    from scipy.ndimage import binary_erosion

    edges = [mask & ~binary_erosion(mask) for mask in (predicted, reference)]
    directed = [
        np.percentile(distance_transform_edt(~to, sampling=SPACING_MM)[of], 95)
        for of, to in (edges, edges[::-1])
    ]
    scores = overlap(predicted, reference, SPACING_MM)
    assert scores.hd95_mm == pytest.approx(max(directed), rel=1e-5)
    furthest = [
        distance_transform_edt(~to, sampling=SPACING_MM)[of].max()
        for of, to in (edges, edges[::-1])
    ]
    assert scores.hd_mm == pytest.approx(max(furthest), rel=1e-5)


def test_lesion_at_the_border_of_the_image_is_closed() -> None:
    mask = box((0, 0, 0), (6, 4, 3))
    assert overlap(mask, mask, SPACING_MM).nsd == 1


def test_empty_reference_is_undefined_and_keeps_the_false_positive_volume() -> None:
    scores = overlap(box((5, 5, 5), (2, 2, 2)), np.zeros((24, 20, 16)), SPACING_MM)
    assert np.isnan([scores.dice, scores.hd95_mm, scores.hd_mm, scores.nsd]).all()
    assert scores.volume_ml == pytest.approx(0.08)


def test_empty_prediction_is_as_wrong_as_can_be() -> None:
    scores = overlap(np.zeros((24, 20, 16)), box((5, 5, 5), (2, 2, 2)), SPACING_MM)
    assert (scores.dice, scores.nsd) == (0, 0)
    assert scores.hd95_mm == pytest.approx((24**2 + 40**2 + 80**2) ** 0.5)


def test_other_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="own grid"):
        overlap(np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), SPACING_MM)


def nsd_of_spheres(step_mm: float, tolerance_mm: float) -> float:
    """Of two spheres of 12 mm whose centres are 3 mm apart, sampled every ``step_mm``."""
    axis = step_mm * (np.arange(round(34 / step_mm)) - (round(34 / step_mm) - 1) / 2)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    one, other = (((x - at) ** 2 + y**2 + z**2) <= 144 for at in (-1.5, 1.5))
    return overlap(one, other, (step_mm,) * 3, tolerance_mm).nsd


@pytest.mark.parametrize("tolerance_mm", [1.0, 1.5, 2.0])
def test_nsd_tends_to_the_share_of_the_area_within_tolerance(tolerance_mm: float) -> None:
    """A point at the angle t is sqrt(153 - 72 cos t) from the other centre, and by Archimedes a
    zone's share of the sphere is its share of cos t. Voxels overstate it, the less the finer: the
    error is of first order, so two sizes extrapolate to none."""
    share = ((12 + tolerance_mm) ** 2 - (12 - tolerance_mm) ** 2) / 72 / 2
    coarse, fine = (nsd_of_spheres(step, tolerance_mm) for step in (1.0, 0.5))
    assert share < fine < coarse
    assert 2 * fine - coarse == pytest.approx(share, abs=0.05)
