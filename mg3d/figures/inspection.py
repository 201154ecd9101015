"""What to look at before training for a week: slices, HU, distributions, what was left out.

Volumes are [D,H,W], axes (z, y, x) growing towards head (S), front (A) and the patient's right (R).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

# Plane -> letters at its top, bottom, left, right, as radiologists look at it.
LETTERS = {"axial": "APRL", "coronal": "SIRL", "sagittal": "SIAP"}


@dataclass(frozen=True)
class Study:
    """Three planes through the middle of a volume, [rows, columns] in [0, 1], turned."""

    title: str
    planes: Mapping[str, np.ndarray]
    spacing_mm: tuple[float, float, float]  # z, y, x of the planes


def mid_planes(volume: np.ndarray) -> dict[str, np.ndarray]:
    """The middle planes of [D,H,W]: head or front up, the patient's right or front on the left."""
    z, y, x = (size // 2 for size in volume.shape)
    planes = {"axial": volume[z], "coronal": volume[:, y], "sagittal": volume[:, :, x]}
    return {name: np.asarray(plane[::-1, ::-1]) for name, plane in planes.items()}


def contact_sheet(studies: Sequence[Study], per_row: int = 3) -> Figure:
    """Studies side by side, three planes each in true proportion, with orientation letters.

    Raises ValueError without a study.
    """
    if not studies:
        raise ValueError("no study to draw")
    rows = -(-len(studies) // per_row)
    figure = Figure(figsize=(4.5 * per_row, 1.9 * rows), layout="constrained")
    panels = figure.subplots(rows, 3 * per_row, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for number, study in enumerate(studies):
        z, y, x = study.spacing_mm
        aspects = {"axial": y / x, "coronal": z / x, "sagittal": z / y}
        for column, (name, plane) in enumerate(study.planes.items()):
            axes = panels[3 * number + column]
            axes.imshow(plane, cmap="gray", vmin=0, vmax=1, aspect=aspects[name])
            places = ((0.5, 0.97), (0.5, 0.03), (0.03, 0.5), (0.97, 0.5))
            for letter, (across, up) in zip(LETTERS[name], places, strict=True):
                axes.text(
                    *(across, up, letter),
                    transform=axes.transAxes,
                    color="yellow",
                    fontsize=6,
                    ha="center",
                    va="center",
                )
        panels[3 * number].set_title(study.title, fontsize=6, loc="left")
    return figure


def hu_histogram(counts: np.ndarray, edges: np.ndarray, window_hu: tuple[int, int]) -> Figure:
    """Voxels by HU over the volumes that were looked at, logarithmic, with the window."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.stairs(counts / counts.sum(), edges, fill=True)
    axes.set(yscale="log", xlabel="HU", ylabel="fraction of voxels")
    for bound in window_hu:
        axes.axvline(bound, color="red", linewidth=1)
    return figure


def distributions(values: Mapping[str, np.ndarray]) -> Figure:
    """One histogram per name (with its unit), median and extremes in the title."""
    columns = 3
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.set_axis_off()
    for axes, (name, found) in zip(panels, values.items(), strict=False):
        axes.hist(found, bins=min(30, max(1, len(np.unique(found)))))
        summary = f"{np.min(found):g} | {np.median(found):g} | {np.max(found):g}"
        axes.set_title(f"least | median | most: {summary} (n={len(found)})", fontsize=6)
        axes.set_xlabel(name)
    return figure


def reasons_of_quarantine(reasons: Mapping[str, Mapping[str, int]]) -> Figure:
    """One bar per stage and reason. A stage that left nothing out has a bar of length 0."""
    bars = [
        (f"{stage}: {reason}", count)
        for stage, found in reasons.items()
        for reason, count in (found or {"nothing": 0}).items()
    ]
    figure = Figure(figsize=(7, 0.8 + 0.2 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh([name for name, _ in bars], [count for _, count in bars])
    axes.bar_label(drawn, fontsize=6)
    axes.invert_yaxis()
    axes.tick_params(labelsize=6)
    axes.set_xlabel("inputs left out")
    return figure
