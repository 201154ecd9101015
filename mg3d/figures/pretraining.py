"""How pre-training went: losses over time, what was reconstructed, which reports match which scans.

Volumes are [D,H,W] in [0,1], axes (z, y, x) growing towards head, front and the patient's right.
"""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

Curves = Mapping[str, np.ndarray]


def loss_curves(losses: Mapping[str, Curves]) -> Figure:
    """One panel per loss; in it one curve per split.

    ``losses[name][split]`` is [n, 2]: step and value. Raises ValueError without any loss.
    """
    if not losses:
        raise ValueError("no loss was recorded: nothing to draw")
    columns = min(4, len(losses))
    rows = math.ceil(len(losses) / columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, curves) in zip(panels, losses.items(), strict=False):
        for split, curve in curves.items():
            marker = "o" if len(curve) < 12 else ""
            axes.plot(curve[:, 0], curve[:, 1], marker=marker, markersize=3, label=split)
        axes.set(title=name, xlabel="step")
        axes.legend(fontsize=7)
    for axes in panels[len(losses) :]:
        axes.axis("off")
    return figure


def reconstruction(
    original: np.ndarray, masked: np.ndarray, reconstructed: np.ndarray, title: str = ""
) -> Figure:
    """Middle axial, coronal and sagittal planes of a volume, as seen, masked and reconstructed.

    All [D,H,W] in [0,1]; radiological display: the patient's right is on the left, front and head
    are up. The last column is the absolute error. Raises ValueError if the shapes differ.
    """
    if not original.shape == masked.shape == reconstructed.shape:
        raise ValueError(f"shapes {original.shape}, {masked.shape}, {reconstructed.shape} differ")
    columns = {
        "original": (original, "gray"),
        "masked": (masked, "gray"),
        "reconstructed": (reconstructed, "gray"),
        "|error|": (np.abs(reconstructed - original), "magma"),
    }
    depth, height, width = original.shape
    planes = {
        "axial": (depth // 2, slice(None), slice(None)),
        "coronal": (slice(None), height // 2, slice(None)),
        "sagittal": (slice(None), slice(None), width // 2),
    }
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(len(planes), len(columns))
    for row, (plane, index) in enumerate(planes.items()):
        for column, (name, (volume, colours)) in enumerate(columns.items()):
            axes = panels[row, column]
            axes.imshow(
                volume[index][::-1, ::-1], cmap=colours, vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(name, fontsize=9)
            if column == 0:
                axes.set_ylabel(plane, fontsize=9)
    figure.suptitle(title, fontsize=9)
    return figure


def similarity_matrix(similarity: np.ndarray, title: str = "") -> Figure:
    """Cosine similarity [V, V] of each volume (rows) with each report (columns).

    Matching pairs are on the diagonal; those above all others of their row are ringed.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity {similarity.shape} must be square: one report per volume")
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(similarity, cmap="viridis", interpolation="nearest")
    not_below = similarity >= similarity.diagonal()[:, None]
    found = np.flatnonzero(not_below.sum(axis=1) == 1)  # only itself
    axes.plot(found, found, "o", markerfacecolor="none", markeredgecolor="white", markersize=5)
    axes.set(xlabel="report", ylabel="volume", title=title)
    figure.colorbar(image, label="cosine similarity")
    return figure
