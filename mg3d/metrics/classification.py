"""Scores of classifiers: one binary label, a panel of labels, or classes that exclude each other.

The values are those of scikit-learn and torchmetrics (the tests say so); these forms cost
microseconds instead of milliseconds, which a thousand resamples of every metric and baseline need.
"""

import numpy as np
from scipy.stats import rankdata


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN without both.

    ``label`` [N] in {0, 1}, ``score`` [N]. Mann-Whitney U with mid-ranks.
    """
    positive = label == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    rank_sum = rankdata(score)[positive].sum()
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def average_precision(label: np.ndarray, score: np.ndarray) -> float:
    """Sum over thresholds of precision times the gain in recall; NaN without positives.

    Equal scores are one threshold, as in scikit-learn.
    """
    num_positive = int((label == 1).sum())
    if not num_positive:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    true_positives = np.cumsum(label[order] == 1)[last_of_tie]
    precision = true_positives / (last_of_tie + 1)
    return float((precision * np.diff(true_positives, prepend=0)).sum() / num_positive)


def brier(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared difference of probability and label; NaN without cases."""
    return float(np.mean((probability - label) ** 2)) if len(label) else float("nan")


def multiclass_brier(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared distance of the probabilities [N, C] to the one-hot class (Brier 1950)."""
    return float(((probability - np.eye(probability.shape[1])[label]) ** 2).sum(1).mean())


def calibration_error(label: np.ndarray, probability: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error (Guo et al., ICML 2017): mean over cases of the gap between the
    mean probability and the share of positives in the case's bin; NaN without cases.

    Bins are equally wide; ``label`` [N] in {0, 1}, ``probability`` [N] in [0, 1].
    """
    if not len(label):
        return float("nan")
    edges = np.linspace(0, 1, num_bins + 1)
    bins = np.minimum(np.searchsorted(edges, probability, side="right") - 1, num_bins - 1)
    gaps = np.bincount(bins, weights=probability - label, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(label))


def f1(label: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of the positive class, ``label``, ``predicted`` [N] in {0, 1}; NaN without positives."""
    positive, called = label == 1, predicted == 1
    if not positive.any():
        return float("nan")
    return float(2 * (positive & called).sum() / (positive.sum() + called.sum()))


def weighted_f1(label: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of both classes, weighted by how often they occur, as CT-CLIP reports it; NaN without
    cases. The negatives dominate it: with 5 % positives, calling none gives 0.93."""
    if not len(label):
        return float("nan")
    shares = [(np.mean(label == value), value) for value in (0, 1)]
    return float(
        sum(
            share * f1((label == value).astype(int), (predicted == value).astype(int))
            for share, value in shares
            if share
        )
    )


CRG_FLOOR = 1 / 3


def crg(label: np.ndarray, predicted: np.ndarray) -> float:
    """Clinically relevant gain of all cells of a panel, as the VLM3D challenge computes it.

    Of X cells with A positives, a true positive earns (X - A) / 2A, a miss costs as much, a false
    positive costs 1; the sum s, at most m = (X - A) / 2, becomes m / (2m - s). Perfect is 1,
    calling all cells or none :data:`CRG_FLOOR`, all wrong 0.2. NaN without both classes.
    """
    positive, called = label == 1, predicted == 1
    num_cells, num_positive = positive.size, int(positive.sum())
    if not 0 < num_positive < num_cells:
        return float("nan")
    best = (num_cells - num_positive) / 2
    gain = best / num_positive
    hits, misses = int((positive & called).sum()), int((positive & ~called).sum())
    earned = gain * (hits - misses) - int((called & ~positive).sum())
    return float(best / (2 * best - earned))


def best_f1_threshold(label: np.ndarray, probability: np.ndarray) -> float:
    """The threshold with the largest F1 (positive: at or above it), half-way between neighbouring
    probabilities, the highest of equals; NaN without both classes. For validation cases."""
    num_positive = int((label == 1).sum())
    if not 0 < num_positive < len(label):
        return float("nan")
    order = np.argsort(-probability, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    hits = np.cumsum(label[order] == 1)[last_of_tie]
    best = int(np.argmax(2 * hits / (num_positive + last_of_tie + 1)))
    values = probability[order][last_of_tie]
    return float((values[best] + values[best + 1]) / 2 if best + 1 < len(values) else 0.0)


def confusion(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts [reference class, predicted class] from class indices [N]."""
    cells = np.bincount(label * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def macro_auroc(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean over classes of one-versus-rest AUROC; NaN if a class is missing.

    ``label`` [N] class indices, ``probability`` [N, C].
    """
    return float(np.mean([auroc(label == c, column) for c, column in enumerate(probability.T)]))


def macro_f1(counts: np.ndarray) -> float:
    """Mean F1 over classes from a confusion matrix [C, C]; NaN if a class is missing."""
    totals = counts.sum(0) + counts.sum(1)
    return _mean_if_all_occur(counts, 2 * np.diag(counts) / np.maximum(totals, 1))


def balanced_accuracy(counts: np.ndarray) -> float:
    """Mean recall over classes from a confusion matrix [C, C]; NaN if a class is missing."""
    return _mean_if_all_occur(counts, np.diag(counts) / np.maximum(counts.sum(1), 1))


def _mean_if_all_occur(counts: np.ndarray, of_class: np.ndarray) -> float:
    return float(of_class.mean()) if counts.sum(1).all() else float("nan")
