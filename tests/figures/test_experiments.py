"""Dots and curves are where the numbers say."""

import numpy as np
import pytest

from mg3d.figures.experiments import curves_by_size, dots_by_rung


def test_a_dot_for_each_seed_and_a_line_through_the_means() -> None:
    values = {"mim": {"a": [1.0, 3.0], "b": [2.0, None]}, "none": {"a": [None, None]}}
    figure = dots_by_rung(values, {"mim": 0.5})
    (axes,) = figure.axes
    first, second, means, null = axes.lines
    assert first.get_xydata().tolist() == [[0, 1], [0, 3]]
    assert second.get_xydata().tolist() == [[1, 2]]
    assert means.get_ydata().tolist() == [2, 2]
    assert set(null.get_ydata()) == {0.5}
    with pytest.raises(ValueError, match="no metric"):
        dots_by_rung({"none": {"a": [None]}}, {})


def test_points_and_fits_over_the_size_of_the_data() -> None:
    points = {"mim": {"small": np.array([[10, 2.0], [20, 1.0]])}}
    figure = curves_by_size(points, {"mim": {"small": ("20 n^-1", lambda n: 20 / n)}})
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), points["mim"]["small"])
    assert axes.lines[1].get_ydata()[[0, -1]] == pytest.approx([2, 1])
    with pytest.raises(ValueError, match="no points"):
        curves_by_size({}, {})
