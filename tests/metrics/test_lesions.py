from itertools import permutations

import numpy as np
import pytest
import SimpleITK

from mg3d.metrics.lesions import LesionCounts, count_lesions, lesion_f1


def masks(*boxes: tuple[int, int]) -> np.ndarray:
    """Bars from start to end along x, 3 x 3 in the other axes."""
    mask = np.zeros((40, 5, 5), bool)
    for start, end in boxes:
        mask[start:end, 1:4, 1:4] = True
    return mask


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        (masks((2, 6)), masks((2, 6)), LesionCounts(1, 0, 0)),
        (masks((2, 6), (20, 24)), masks((2, 6)), LesionCounts(1, 1, 0)),
        (masks(), masks((2, 6), (20, 24)), LesionCounts(0, 0, 2)),
        (masks((2, 6)), masks(), LesionCounts(0, 1, 0)),
        # One prediction over two lesions finds one of them, the one it overlaps more.
        (masks((2, 20)), masks((2, 6), (8, 20)), LesionCounts(1, 0, 1)),
        # 1 of 11 voxels in common is below the threshold of 0.1.
        (masks((2, 8)), masks((7, 13)), LesionCounts(0, 1, 1)),
    ],
)
def test_counts_by_hand(
    predicted: np.ndarray, reference: np.ndarray, expected: LesionCounts
) -> None:
    assert count_lesions(predicted, reference) == expected


def test_voxels_that_touch_at_a_corner_are_one_lesion() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_lesions(mask, mask) == LesionCounts(1, 0, 0)


def components(mask: np.ndarray) -> np.ndarray:
    """By ITK."""
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    return SimpleITK.GetArrayFromImage(SimpleITK.ConnectedComponent(image, True))


def best_number_of_pairs(predicted: np.ndarray, reference: np.ndarray) -> int:
    """By trying every assignment."""
    of_p, of_r = components(predicted), components(reference)
    iou = np.zeros((max(of_p.max(), of_r.max()),) * 2)
    for p in range(1, of_p.max() + 1):
        for r in range(1, of_r.max() + 1):
            both = ((of_p == p) & (of_r == r)).sum()
            iou[p - 1, r - 1] = both / ((of_p == p) | (of_r == r)).sum()
    rows = range(len(iou))
    return max(int((iou[rows, list(order)] > 0.5).sum()) for order in permutations(rows))


def test_pairs_agree_with_every_assignment_tried() -> None:
    """At IoU above 0.5 the pairing is unique, so the greedy one is the best."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        starts = np.arange(0, 35, 7) + generator.integers(0, 2, 5)
        reference = masks(*[(a, a + 4) for a in starts])
        predicted = masks(*[(a + generator.integers(0, 3), a + 4) for a in starts[:4]])
        counts = count_lesions(predicted, reference, 0.5)
        assert counts.found == best_number_of_pairs(predicted, reference)
        assert counts.found + counts.false == 4
        assert counts.found + counts.missed == 5


def test_f1() -> None:
    assert lesion_f1(2, 1, 1) == pytest.approx(4 / 6)
    assert lesion_f1(0, 3, 0) == 0
    assert np.isnan(lesion_f1(0, 0, 0))
