import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from mg3d.metrics.classification import auroc, average_precision, brier

CASES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])),
    min_size=2,
    max_size=30,
).filter(lambda rows: len({label for label, _ in rows}) == 2)


@settings(max_examples=80, deadline=None)
@given(CASES)
def test_agree_with_scikit_learn_ties_included(rows: list[tuple[int, float]]) -> None:
    label, score = (np.array(column) for column in zip(*rows, strict=True))
    assert auroc(label, score) == pytest.approx(roc_auc_score(label, score))
    assert average_precision(label, score) == pytest.approx(average_precision_score(label, score))
    assert brier(label, score) == pytest.approx(brier_score_loss(label, score))


def test_by_hand() -> None:
    label, score = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert auroc(label, score) == 3 / 4
    assert average_precision(label, score) == pytest.approx((1 + 2 / 3) / 2)
    assert brier(label, score) == pytest.approx((0.01 + 0.64 + 0.09 + 0.01) / 4)


def test_constant_score_is_chance() -> None:
    assert auroc(np.array([1, 0, 0]), np.full(3, 0.3)) == 0.5


def test_one_class_is_undefined() -> None:
    assert np.isnan(auroc(np.zeros(3), np.arange(3.0)))
    assert np.isnan(average_precision(np.zeros(3), np.arange(3.0)))
