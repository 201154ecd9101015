import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)
from torchmetrics.functional.classification import binary_calibration_error

from mg3d.metrics.classification import (
    CRG_FLOOR,
    auroc,
    average_precision,
    balanced_accuracy,
    best_f1_threshold,
    brier,
    calibration_error,
    confusion,
    crg,
    f1,
    macro_auroc,
    macro_f1,
    weighted_f1,
)

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


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_calibration_and_f1_agree_with_the_libraries(rows: list[tuple[int, float]]) -> None:
    label, score = (np.array(column) for column in zip(*rows, strict=True))
    called = (score >= 0.5).astype(int)
    assert f1(label, called) == pytest.approx(f1_score(label, called, zero_division=0))
    theirs = f1_score(label, called, average="weighted", zero_division=0)
    assert weighted_f1(label, called) == pytest.approx(theirs)
    inner = np.clip(score * 0.97, 0.013, None)  # not on an edge of a bin
    ece = binary_calibration_error(torch.tensor(inner), torch.tensor(label), n_bins=15, norm="l1")
    assert calibration_error(label, inner) == pytest.approx(float(ece), abs=1e-5)


def test_calibration_error_by_hand() -> None:
    # Two bins: {0.1, 0.3} with one positive: gap 0.3; {0.9} positive: gap 0.1.
    label, probability = np.array([0, 1, 1]), np.array([0.1, 0.3, 0.9])
    assert calibration_error(label, probability, num_bins=2) == pytest.approx((0.6 + 0.1) / 3)


def test_weighted_f1_flatters_who_calls_nothing() -> None:
    label = np.array([1] + [0] * 19)
    assert weighted_f1(label, np.zeros(20)) == pytest.approx(0.95 * 2 * 19 / 39)
    assert f1(label, np.zeros(20)) == 0


def test_crg_by_hand() -> None:
    # X = 10 cells, A = 2: a hit earns 2, a miss costs 2, a false positive 1; m = 4.
    label = np.array([1, 1] + [0] * 8)
    one_of_each = np.array([1, 0, 1] + [0] * 7)
    assert crg(label, one_of_each) == pytest.approx(4 / (8 - (2 - 2 - 1)))
    assert crg(label, label) == 1
    assert crg(label, np.zeros(10)) == pytest.approx(CRG_FLOOR)
    assert crg(label, np.ones(10)) == pytest.approx(CRG_FLOOR)
    assert crg(label, 1 - label) == pytest.approx(0.2)
    assert np.isnan(crg(np.zeros(3), np.zeros(3)))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
def test_crg_lies_between_all_wrong_and_perfect(rows: list[tuple[int, int]]) -> None:
    label, called = (np.array(column) for column in zip(*rows, strict=True))
    value = crg(label, called)
    assert np.isnan(value) or 0.2 - 1e-9 <= value <= 1


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_no_threshold_has_a_larger_f1(rows: list[tuple[int, float]]) -> None:
    label, score = (np.array(column) for column in zip(*rows, strict=True))
    threshold = best_f1_threshold(label, score)
    best = max(f1(label, score >= t) for t in [*score, 2.0])
    assert f1(label, score >= threshold) == pytest.approx(best)
    assert threshold not in score or threshold == 0


def test_thresholds_by_hand() -> None:
    label, score = np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.8, 0.6, 0.4, 0.1])
    # F1 over cuts: 1/2, 4/5, 2/3, 6/7, 3/4.
    assert best_f1_threshold(label, score) == pytest.approx(0.25)
    assert best_f1_threshold(label, np.full(5, 0.3)) == 0  # everything is called
    assert np.isnan(best_f1_threshold(np.ones(3), np.arange(3.0)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_classes_agree_with_scikit_learn(rows: list[tuple[int, int, int]]) -> None:
    table = np.array([*rows, (0, 1, 2), (1, 2, 0), (2, 0, 1)])
    label = table[:, 0]
    raw = np.column_stack([table[:, 1], table[:, 2], 5 - table[:, 1]]) + 0.5
    probability = raw / raw.sum(1, keepdims=True)
    called = probability.argmax(1)
    counts = confusion(label, called, 3)
    assert counts.tolist() == confusion_matrix(label, called, labels=[0, 1, 2]).tolist()
    theirs = roc_auc_score(label, probability, multi_class="ovr", labels=[0, 1, 2])
    assert macro_auroc(label, probability) == pytest.approx(theirs)
    assert macro_f1(counts) == pytest.approx(f1_score(label, called, average="macro"))
    assert balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(label, called))


def test_classes_by_hand() -> None:
    counts = np.array([[2, 0, 0], [1, 1, 0], [0, 2, 2]])
    assert balanced_accuracy(counts) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert macro_f1(counts) == pytest.approx((4 / 5 + 2 / 5 + 4 / 6) / 3)
    assert np.isnan(balanced_accuracy(np.array([[1, 1], [0, 0]])))
    label, probability = np.array([0, 1, 1]), np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    assert macro_auroc(label, probability) == 0.5
