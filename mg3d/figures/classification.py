"""ROC curves and calibration of a classifier, beside its null baselines."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure


def roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """One ROC curve per system from ``{system: (label [N], score [N])}``; empty ones are named."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for system, (label, score) in curves.items():
        if len(np.unique(label)) < 2:
            axes.plot([], [], label=f"{system}: one class only")
            continue
        false_positive, true_positive = _roc_points(label, score)
        axes.plot(false_positive, true_positive, label=f"{system} (n={len(label)})")
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", title=title)
    axes.set_aspect("equal")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def calibration(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, num_bins: int = 5
) -> Figure:
    """Observed share of positives over predicted probability, in bins of equal count.

    ``{system: (label [N], probability [N])}``; a marker's area grows with the cases in its bin.
    """
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1)
    for system, (label, probability) in curves.items():
        bins = np.array_split(np.argsort(probability, kind="stable"), num_bins)
        points = [(probability[b].mean(), label[b].mean(), len(b)) for b in bins if len(b)]
        if points:
            x, y, count = np.array(points).T
            axes.plot(x, y, linewidth=1)
            axes.scatter(x, y, s=10 + 5 * count, label=system)
        else:
            axes.plot([], [], label=f"{system}: no cases")
    axes.set(
        xlabel="predicted probability",
        ylabel="observed share",
        title=title,
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper left", fontsize=8)
    return figure


def _roc_points(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive rates at each distinct score, from (0, 0) to (1, 1)."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    positive = np.cumsum(label[order] == 1)[last_of_tie]
    negative = last_of_tie + 1 - positive
    return (
        np.concatenate([[0.0], negative / max(negative[-1], 1)]),
        np.concatenate([[0.0], positive / max(positive[-1], 1)]),
    )
