"""A sheet of generated reports beside the reference and three slices."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Generated:
    """One case: three 2D slices (rows, columns), both texts, and the findings each asserts."""

    slices: Sequence[np.ndarray]
    reference: str
    hypothesis: str
    reference_findings: frozenset[str]
    hypothesis_findings: frozenset[str]


def report_sheet(cases: Sequence[Generated]) -> Figure:
    """One row per case: slices, reference, hypothesis, and the findings in agreement (green),
    missed (orange) and invented (red)."""
    num_rows = max(1, len(cases))
    figure = Figure(figsize=(12, 2.6 * num_rows), layout="constrained")
    grid = figure.add_gridspec(num_rows, 5, width_ratios=[1, 1, 1, 2.6, 2.6])
    for row, case in enumerate(cases):
        for column, plane in enumerate(case.slices[:3]):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(plane, cmap="gray", interpolation="nearest")
            axes.axis("off")
        agreed = case.reference_findings & case.hypothesis_findings
        for column, (name, text, extra, colour) in enumerate(
            (
                ("reference", case.reference, case.reference_findings - agreed, "darkorange"),
                ("generated", case.hypothesis, case.hypothesis_findings - agreed, "red"),
            )
        ):
            axes = figure.add_subplot(grid[row, 3 + column])
            axes.axis("off")
            text = "".join(c if c.isprintable() else " " for c in text)  # a font has no controls
            body = textwrap.fill(textwrap.shorten(text, 900, placeholder=" ..."), 74)
            axes.text(0, 1, f"{name}\n{body}", va="top", fontsize=6.5, transform=axes.transAxes)
            axes.text(
                0,
                0.09,
                "both: " + (", ".join(sorted(agreed)) or "-"),
                fontsize=6,
                color="green",
                transform=axes.transAxes,
            )
            axes.text(
                0,
                0.0,
                f"{name} only: " + (", ".join(sorted(extra)) or "-"),
                fontsize=6,
                color=colour,
                transform=axes.transAxes,
            )
    return figure
