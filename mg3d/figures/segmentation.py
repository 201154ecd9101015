"""Masks over slices, and agreement of volumes."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def overlays(
    slices: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    titles: Sequence[str],
    num_columns: int = 4,
) -> Figure:
    """One panel per case: slice (grey), reference outline (green), predicted outline (red).

    Each is a list of 2D arrays indexed (x, y) as in a RAS volume, masks bool or class numbers;
    shown as radiologists look, with the front up and the patient's right on the left.
    """
    num_columns = max(1, min(num_columns, len(slices)))
    num_rows = max(1, -(-len(slices) // num_columns))
    figure = Figure(figsize=(2.6 * num_columns, 2.8 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, image, p, r, title in zip(panels, slices, predicted, reference, titles, strict=False):
        axes.imshow(_radiological(image), cmap="gray", interpolation="nearest")
        for mask, colour in ((r, "lime"), (p, "red")):
            if mask.any():
                levels = np.arange(int(mask.max())) + 0.5
                axes.contour(_radiological(mask.astype(float)), levels, colors=colour, linewidths=1)
        axes.set_title(title, fontsize=8)
    figure.suptitle("reference green, prediction red", fontsize=9)
    return figure


def bland_altman(
    measured: np.ndarray,
    reference: np.ndarray,
    bias: float,
    limits: tuple[float, float],
    unit: str = "ml",
) -> Figure:
    """Difference over mean of two measurements [N], with bias and 95 % limits of agreement."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.scatter((measured + reference) / 2, measured - reference, s=18)
    axes.axhline(bias, color="C1", label=f"bias {bias:.1f} {unit}")
    for limit in limits:
        if np.isfinite(limit):
            axes.axhline(limit, color="C1", linestyle="--", linewidth=1)
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set(
        xlabel=f"mean of both ({unit})",
        ylabel=f"predicted - reference ({unit})",
        title=f"Bland-Altman, n={len(measured)}",
    )
    axes.legend(fontsize=8)
    return figure


def agreement(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, unit: str) -> Figure:
    """Predicted over reference for each name, (measured, reference) both [N], with the identity."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    for colour, (name, (measured, reference)) in enumerate(pairs.items()):
        axes.scatter(
            reference, measured, s=18, color=f"C{colour}", label=f"{name}, n={len(measured)}"
        )
    values = np.concatenate([part for pair in pairs.values() for part in pair] + [np.zeros(1)])
    ends = [float(values.min()), float(values.max())]
    axes.plot(ends, ends, color="0.7", linewidth=1)
    axes.set(xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})", title=title)
    axes.legend(fontsize=8)
    return figure


def _radiological(plane: np.ndarray) -> np.ndarray:
    """(x, y), x to the patient's right, y to the front -> rows front to back, right first."""
    return plane.T[::-1, ::-1]
