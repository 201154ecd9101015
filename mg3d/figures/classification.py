"""What a classifier does, beside its null baselines: ROC, precision and recall, calibration,
decision curves; confusion of classes, labels that occur together, FROC."""

from collections.abc import Mapping, Sequence

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


def precision_recall(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Precision over recall from ``{system: (label [N], score [N])}``, in steps; the dashed line is
    the share of positives, which a constant score gets."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (system, (label, score)) in enumerate(curves.items()):
        if not (label == 1).any():
            axes.plot([], [], label=f"{system}: no positives")
            continue
        order = np.argsort(-score, kind="stable")
        last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
        hits = np.cumsum(label[order] == 1)[last_of_tie]
        recall = np.concatenate([[0.0], hits / hits[-1]])
        precision = hits / (last_of_tie + 1)
        axes.step(recall, np.concatenate([precision[:1], precision]), label=system)
        if place == 0:
            axes.axhline(np.mean(label == 1), color="0.7", linestyle="--", linewidth=1)
    axes.set(xlabel="recall", ylabel="precision", title=title, xlim=(0, 1), ylim=(0, 1.02))
    axes.set_aspect("equal")
    axes.legend(loc="lower left", fontsize=8)
    return figure


def decision_curve(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> Figure:
    """Net benefit over the threshold (Vickers and Elkin, Medical Decision Making 2006), beside
    treating everyone and nobody: true positives less false positives weighted by the odds."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0.01, 0.99, 99)
    odds = thresholds / (1 - thresholds)
    axes.axhline(0, color="0.7", linewidth=1, label="nobody")
    top = 0.1
    for place, (system, (label, probability)) in enumerate(curves.items()):
        if not len(label):
            continue
        called = probability[None] >= thresholds[:, None]
        hits = (called & (label == 1)).mean(1)
        wrong = (called & (label == 0)).mean(1)
        share = float(np.mean(label == 1))
        if place == 0:
            axes.plot(thresholds, share - (1 - share) * odds, "--", color="0.7", label="everyone")
            top = max(top, share)
        axes.plot(thresholds, hits - wrong * odds, label=system)
    axes.set(xlabel="threshold", ylabel="net benefit", title=title, ylim=(-0.5 * top, 1.1 * top))
    axes.legend(loc="upper right", fontsize=8)
    return figure


def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts [reference, called] with numbers in the cells, shaded by the share of the row."""
    figure = Figure(figsize=(4.5, 4.2), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color)
    ticks = range(len(names))
    axes.set(xlabel="called", ylabel="reference", title=title)
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    return figure


def co_occurrence(reference: np.ndarray, called: np.ndarray, names: Sequence[str]) -> Figure:
    """How often labels come together in the reference and as called: bool [N, K] each; a cell is
    the share of cases with both."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    both = [rows.astype(float).T @ rows / max(1, len(rows)) for rows in (reference, called)]
    top = max(0.01, *(cells.max() for cells in both))
    ticks = range(len(names))
    for axes, cells, title in zip(
        figure.subplots(1, 2), both, ("reference", "called"), strict=True
    ):
        picture = axes.imshow(cells, cmap="Blues", vmin=0, vmax=top)
        axes.set_title(title)
        axes.set_xticks(ticks, names, rotation=90, fontsize=7)
        axes.set_yticks(ticks, names if title == "reference" else [""] * len(names), fontsize=7)
    figure.colorbar(picture, ax=figure.axes, shrink=0.7, label="share of cases with both")
    return figure


def froc(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], points: Sequence[float], ceiling: float
) -> Figure:
    """Sensitivity over false positives per scan from ``{system: (false positives, sensitivity)}``;
    the ``points`` whose mean is the CPM are marked, and the ``ceiling`` of the candidate list."""
    figure = Figure(figsize=(5.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(ceiling, color="0.7", linestyle="--", label=f"ceiling {ceiling:.3f}")
    for system, (x, y) in curves.items():
        (line,) = axes.plot(x, y, label=system)
        axes.plot(points, np.interp(points, x, y), "o", color=line.get_color(), markersize=4)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="false positives per scan",
        ylabel="sensitivity",
        xlim=(points[0], points[-1]),
        ylim=(0, 1.02),
    )
    axes.set_xticks(points, [f"{point:g}" for point in points])
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
