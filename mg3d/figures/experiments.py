"""Many runs in one picture: metrics over the rungs of an ablation, losses over data sizes."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

MAX_COLUMNS = 3


def dots_by_rung(
    values: Mapping[str, Mapping[str, Sequence[float | None]]], nulls: Mapping[str, float]
) -> Figure:
    """One panel per metric: a dot for each seed's value, a line through the means.

    ``values[metric][rung]`` holds one value per seed (None: none); a metric without any value has
    no panel. ``nulls[metric]`` is a dashed line. Raises ValueError if nothing can be drawn.
    """
    drawn = {
        metric: by_rung
        for metric, by_rung in values.items()
        if any(value is not None for found in by_rung.values() for value in found)
    }
    if not drawn:
        raise ValueError("no metric has a value: nothing to draw")
    figure, panels = _panels(len(drawn))
    for axes, (metric, by_rung) in zip(panels, drawn.items(), strict=False):
        means = []
        for place, found in enumerate(by_rung.values()):
            there = [value for value in found if value is not None]
            axes.plot([place] * len(there), there, "o", color="tab:blue", alpha=0.6, markersize=4)
            means.append(float(np.mean(there)) if there else np.nan)
        axes.plot(range(len(means)), means, color="tab:blue", linewidth=1)
        if metric in nulls:
            axes.axhline(nulls[metric], color="gray", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(by_rung)), list(by_rung), rotation=35, ha="right", fontsize=7)
        axes.set_title(metric, fontsize=9)
    return figure


def curves_by_size(
    points: Mapping[str, Mapping[str, np.ndarray]],
    fits: Mapping[str, Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]],
) -> Figure:
    """One panel per measure, a colour per model: points over the number of studies (log), fits.

    ``points[measure][model]`` is [P, 2]: studies and value; ``fits[measure][model]`` a formula for
    the legend and the curve. Raises ValueError without points.
    """
    if not points:
        raise ValueError("no points: nothing to draw")
    figure, panels = _panels(len(points))
    for axes, (measure, by_model) in zip(panels, points.items(), strict=False):
        for place, (model, found) in enumerate(by_model.items()):
            colour = f"C{place}"
            axes.plot(found[:, 0], found[:, 1], "o", color=colour, markersize=4, label=model)
            if model in fits.get(measure, {}):
                formula, curve = fits[measure][model]
                n = np.geomspace(found[:, 0].min(), found[:, 0].max(), 50)
                axes.plot(n, curve(n), color=colour, linewidth=1, label=formula)
        axes.set_xscale("log")
        axes.set(xlabel="training studies")
        axes.set_title(measure, fontsize=9)
        axes.legend(fontsize=6)
    return figure


def _panels(num: int) -> tuple[Figure, np.ndarray]:
    columns = min(MAX_COLUMNS, num)
    rows = math.ceil(num / columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[num:]:
        axes.axis("off")
    return figure, panels[:num]
