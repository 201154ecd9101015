"""Known curves come back; too few sizes for a floor are said."""

import numpy as np
import pytest

from mg3d.metrics.power_law import fit_power_law


def test_three_parameters_come_back_from_enough_sizes() -> None:
    n = np.array([100, 200, 400, 800, 1600, 3200])
    law = fit_power_law(n, 0.2 + 3 * n**-0.5)
    assert (law.floor, law.scale, law.exponent) == pytest.approx((0.2, 3, 0.5), rel=1e-3)
    np.testing.assert_allclose(law.residuals, 0, atol=1e-5)
    assert law.note == "three parameters on 6 points of 6 sizes"
    assert law(np.array([10_000])) == pytest.approx(0.23, rel=1e-3)


def test_of_three_sizes_two_parameters_and_the_residuals() -> None:
    n = np.array([50, 100, 200, 100])
    law = fit_power_law(n, 2 * n**-0.25 + [0, 0.01, 0, -0.01])
    assert law.floor == 0
    assert (law.scale, law.exponent) == pytest.approx((2, 0.25), rel=1e-3)
    np.testing.assert_allclose(law.residuals, [0, 0.01, 0, -0.01], atol=1e-4)
    assert law.note == "two parameters, no floor: 3 sizes do not identify three"
    assert law.formula == "2 n^-0.25"


def test_a_loss_that_rises_with_the_data_has_a_negative_exponent() -> None:
    assert fit_power_law(np.array([1, 2, 4]), np.array([1, 2, 4])).exponent == pytest.approx(-1)


def test_what_is_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 2 sizes and there is 1: add some"):
        fit_power_law(np.array([5, 5]), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"positive losses, not \[1\.0, 0\.0\]"):
        fit_power_law(np.array([5, 6]), np.array([1, 0]))
