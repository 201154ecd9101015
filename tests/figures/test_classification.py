import numpy as np
import pytest
from sklearn.metrics import roc_curve

from mg3d.figures.classification import calibration, roc

LABEL = np.array([1, 0, 1, 0, 0, 1])
SCORE = np.array([0.9, 0.2, 0.6, 0.6, 0.1, 0.4])


def test_roc_draws_the_points_of_scikit_learn() -> None:
    axes = roc({"model": (LABEL, SCORE)}, "severe").axes[0]
    x, y = axes.lines[1].get_data()
    false_positive, true_positive, _ = roc_curve(LABEL, SCORE, drop_intermediate=False)
    assert x == pytest.approx(false_positive)
    assert y == pytest.approx(true_positive)


def test_roc_names_a_system_with_one_class() -> None:
    axes = roc({"model": (np.ones(3), SCORE[:3])}, "severe").axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == "model: one class only"


def test_calibration_bins_by_hand() -> None:
    axes = calibration({"model": (LABEL, SCORE)}, "severe", num_bins=2).axes[0]
    x, y = axes.lines[1].get_data()
    assert x == pytest.approx([0.7 / 3, 2.1 / 3])
    assert y == pytest.approx([1 / 3, 2 / 3])


def test_no_cases_still_give_a_figure() -> None:
    empty = {"model": (np.zeros(0), np.zeros(0))}
    assert roc(empty, "severe").axes
    assert calibration(empty, "severe").axes
