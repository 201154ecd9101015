"""What a report finds, and how far matched pairs stand from the others."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Query:
    """One row of the contact sheet: a text, its rank, and what it found.

    ``slices`` are 2D (rows, columns), best first; ``captions`` stand above them; ``correct`` marks
    the right item among them.
    """

    text: str
    rank: int
    slices: Sequence[np.ndarray]
    captions: Sequence[str]
    correct: Sequence[bool]


@dataclass(frozen=True)
class VolumeQuery:
    """One row of the other sheet: a slice ``plane`` of a volume, and the ``texts`` that it found,
    best first."""

    plane: np.ndarray
    rank: int
    texts: Sequence[str]
    captions: Sequence[str]
    correct: Sequence[bool]


def contact_sheet(queries: Sequence[Query], num_found: int, title: str) -> Figure:
    """One row per query: its text, then the first ``num_found`` volumes, the right one framed."""
    num_rows = max(1, len(queries))
    figure = Figure(figsize=(3.6 + 1.7 * num_found, 2.1 * num_rows + 0.4), layout="constrained")
    grid = figure.add_gridspec(num_rows, num_found + 1, width_ratios=[2.4] + [1] * num_found)
    for row, query in enumerate(queries):
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        text = textwrap.shorten(query.text, 520, placeholder=" ...")
        axes.text(
            0,
            1,
            f"right volume: rank {query.rank}\n" + textwrap.fill(text, 68),
            va="top",
            fontsize=6.5,
            transform=axes.transAxes,
        )
        for column, (plane, caption, correct) in enumerate(
            zip(query.slices, query.captions, query.correct, strict=True)
        ):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.imshow(plane, cmap="gray", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(caption, fontsize=6.5, color="green" if correct else "black")
            for spine in axes.spines.values():
                spine.set(color="green" if correct else "0.8", linewidth=3 if correct else 1)
    figure.suptitle(title, fontsize=9)
    return figure


def volume_contact_sheet(queries: Sequence[VolumeQuery], num_found: int, title: str) -> Figure:
    """One row per query: its slice, then the first ``num_found`` reports, the right one framed."""
    num_rows = max(1, len(queries))
    figure = Figure(figsize=(2.2 + 2.6 * num_found, 2.3 * num_rows + 0.4), layout="constrained")
    grid = figure.add_gridspec(num_rows, num_found + 1, width_ratios=[0.8] + [1] * num_found)
    for row, query in enumerate(queries):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(query.plane, cmap="gray", interpolation="nearest")
        axes.set_title(f"right report: rank {query.rank}", fontsize=6.5)
        axes.set_xticks([])
        axes.set_yticks([])
        for column, (report, caption, correct) in enumerate(
            zip(query.texts, query.captions, query.correct, strict=True)
        ):
            axes = figure.add_subplot(grid[row, column + 1])
            text = textwrap.fill(textwrap.shorten(report, 420, placeholder=" ..."), 42)
            axes.text(0.03, 0.97, text, va="top", fontsize=5.5, transform=axes.transAxes)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(caption, fontsize=6.5, color="green" if correct else "black")
            for spine in axes.spines.values():
                spine.set(color="green" if correct else "0.8", linewidth=3 if correct else 1)
    figure.suptitle(title, fontsize=9)
    return figure


def similarity_histogram(matched: np.ndarray, unmatched: np.ndarray) -> Figure:
    """Densities of the similarity of matched [M] and unmatched [U] pairs on common bins."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([matched, unmatched])
    low, high = float(both.min()), float(both.max())
    bins = np.linspace(low, high if high > low else low + 1e-3, 31).tolist()
    for values, name in ((unmatched, "unmatched"), (matched, "matched")):
        axes.hist(values, bins=bins, density=True, alpha=0.6, label=f"{name} (n={len(values)})")
    axes.set(xlabel="cosine similarity", ylabel="density", title="report and volume")
    axes.legend(fontsize=8)
    return figure
