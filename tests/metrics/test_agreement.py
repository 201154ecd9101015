import numpy as np
import pytest

from mg3d.metrics.agreement import bland_altman


def test_by_hand() -> None:
    bias, low, high = bland_altman(np.array([12.0, 18.0, 33.0]), np.array([10.0, 20.0, 30.0]))
    assert bias == 1
    assert (low, high) == pytest.approx((1 - 1.96 * 7**0.5, 1 + 1.96 * 7**0.5))


def test_one_case_has_no_limits() -> None:
    bias, low, high = bland_altman(np.array([2.0]), np.array([1.0]))
    assert bias == 1
    assert np.isnan([low, high]).all()
