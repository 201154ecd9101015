"""A forest plot: one line per row of the results table, its interval, its null baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """``value`` None: the metric could not be had."""

    label: str
    value: float | None
    interval: tuple[float, float] | None
    nulls: Mapping[str, float | None]


def forest(lines: Sequence[Line]) -> "Figure":
    """First line on top; hollow markers are null baselines, the filled one is the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.38 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for row, line in enumerate(lines):
        nulls = [value for value in line.nulls.values() if value is not None]
        axes.plot(
            nulls, [row] * len(nulls), "o", markerfacecolor="none", color="tab:gray", zorder=1
        )
        if line.value is None:
            axes.annotate("not available", (0, row), va="center", fontsize=8)
            continue
        if line.interval is not None:
            axes.plot(line.interval, [row, row], "-", color="tab:blue", linewidth=2, zorder=2)
        axes.plot([line.value], [row], "s", color="tab:blue", zorder=3)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("headline metric, 95 % interval by patient; circles: null baselines")
    return figure
