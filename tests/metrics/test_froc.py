import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_froc_curve_data, compute_froc_score

from mg3d.metrics.froc import OPERATING_POINTS, cpm, curve, match, sensitivities


def test_by_hand() -> None:
    """Two scans, four nodules, one never found. Sorted: N .9, F .8, N .7, F .6, F .5, N .4."""
    false_positives = np.array([0.8, 0.5, 0.6])
    nodules = np.array([0.9, 0.7, 0.4, -np.inf])
    x, y = curve(false_positives, nodules, num_scans=2)
    assert x.tolist() == [0, 0, 0.5, 0.5, 1, 1.5, 1.5]
    assert y.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75]
    # 1/8 and 1/4 lie on the flat 0.25; 1/2 has reached 0.5; 1 is 0.5; from 1.5 on the ceiling 3/4.
    expected = [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
    assert sensitivities(false_positives, nodules, 2).tolist() == expected
    assert cpm(false_positives, nodules, 2) == pytest.approx(np.mean(expected))


def test_seven_operating_points() -> None:
    assert OPERATING_POINTS == (0.125, 0.25, 0.5, 1, 2, 4, 8)


def test_excluded_is_neither_hit_nor_false_positive_and_a_hit_counts_once() -> None:
    points = np.array([[0, 0, 0], [0, 0, 4.0], [0, 0, 6], [50, 0, 0], [90, 0, 0]])
    probability = np.array([0.3, 0.8, 0.7, 0.9, 0.6])
    nodules = np.array([[0, 0, 0, 10.0], [0, 99, 0, 8]])
    excluded = np.array([[50.0, 3, 0, 6]])
    found = match(points, probability, nodules, excluded)
    assert found.nodules.tolist() == [0.8, -np.inf]  # the best of two; the second has none
    assert found.false_positives.tolist() == [0.7, 0.6]  # 6 mm from a nodule of 5 mm; not (50, 0)
    nothing = match(np.zeros((0, 3)), np.zeros(0), nodules, np.zeros((0, 4)))
    assert nothing.nodules.tolist() == [-np.inf, -np.inf]
    assert nothing.false_positives.size == 0


PROBABILITIES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8, 0.9]), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(PROBABILITIES, PROBABILITIES, st.integers(0, 3), st.integers(1, 5))
def test_agrees_with_monai(wrong: list[float], found: list[float], lost: int, scans: int) -> None:
    # A lowest threshold that MONAI may leave out: below all others, a point at the end.
    false_positives, hits = np.array([*wrong, 0.01]), np.array(found)
    nodules = np.concatenate([hits, np.full(lost, -np.inf)])
    x, y = curve(false_positives, nodules, scans)
    monai_x, monai_y = compute_froc_curve_data(false_positives, hits, len(nodules), scans)
    assert x[:-1] == pytest.approx(monai_x[::-1])
    assert y[:-1] == pytest.approx(monai_y[::-1])
    if x[-1] <= 1 / 8 or x[-2] >= 8:  # the left-out point decides nothing
        theirs = compute_froc_score(monai_x, monai_y, OPERATING_POINTS)
        assert cpm(false_positives, nodules, scans) == pytest.approx(theirs)


def test_one_probability_for_all_is_a_straight_line() -> None:
    x, y = curve(np.full(40, 0.5), np.array([0.5, 0.5, -np.inf]), num_scans=2)
    assert (x.tolist(), y.tolist()) == ([0, 20], [0, 2 / 3])
    assert np.isnan(cpm(np.ones(3), np.zeros(0), 2))
