"""A study and what a model said of it, on one page."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

NUM_LISTED = 20


def prediction(
    planes: dict[str, np.ndarray],
    masks: dict[str, np.ndarray] | None,
    bars: Sequence[tuple[str, float, float | None]],
    lines: Sequence[str],
    title: str,
) -> Figure:
    """Three planes (row, column) of grey values, outlined by ``masks`` of class numbers on the same
    planes; a bar for each (name, probability, threshold); ``lines`` of text.

    ``title`` is the model's name and the study's pseudonym.
    """
    num_rows = 1 + bool(bars) + bool(lines)
    bars = bars[:NUM_LISTED]
    heights = [3.0] + [0.3 * len(bars) + 0.8] * bool(bars) + [1.6] * bool(lines)
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    rows = figure.subfigures(num_rows, 1, height_ratios=heights, squeeze=False).ravel()
    for axes, (name, plane) in zip(rows[0].subplots(1, 3), planes.items(), strict=True):
        axes.imshow(plane, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        if masks is not None and masks[name].any():
            levels = np.arange(int(masks[name].max())) + 0.5
            axes.contour(masks[name].astype(float), levels, colors="red", linewidths=1)
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    if bars:
        axes = rows[1].subplots()
        places = np.arange(len(bars))[::-1]
        axes.barh(places, [value for _, value, _ in bars], color="C0")
        for place, (_, _, threshold) in zip(places, bars, strict=True):
            if threshold is not None:
                axes.plot([threshold] * 2, [place - 0.45, place + 0.45], color="C3")
        axes.set_yticks(places, [name for name, _, _ in bars], fontsize=8)
        axes.set(xlim=(0, 1), xlabel="probability; red: threshold from validation")
    if lines:
        text = "\n".join(textwrap.fill(line, 110) for line in lines)
        rows[-1].text(0.02, 0.95, text, va="top", fontsize=8, family="monospace")
    figure.suptitle(f"{title}. Research use only.", fontsize=9)
    return figure
