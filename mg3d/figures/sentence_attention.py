"""A sentence's weights over the image tokens, laid over the middle planes of the volume."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import zoom


@dataclass(frozen=True)
class Attended:
    """A sentence, its weights over the token grid [D', H', W'], the axial (H, W), coronal (D, W)
    and sagittal (D, H) middle planes as they are looked at, and each one's height of a pixel over
    its width."""

    sentence: str
    weights: np.ndarray
    planes: Sequence[np.ndarray]
    aspects: Sequence[float]


def attention_sheet(shown: Sequence[Attended]) -> Figure:
    """A row per sentence. The colours span that sentence's own range, which its title tells: a
    range of nearly nothing means that the sentence looks everywhere alike."""
    num_rows = max(1, len(shown))
    figure = Figure(figsize=(8, 2.5 * num_rows), layout="constrained")
    for part, one in zip(figure.subfigures(num_rows, 1, squeeze=False)[:, 0], shown, strict=False):
        low, high = float(one.weights.min()), float(one.weights.max())
        text = textwrap.fill(textwrap.shorten(one.sentence, 180, placeholder=" ..."), 100)
        part.suptitle(f"{text}\nweight of a token {low:.3f} to {high:.3f}", fontsize=8)
        for axes, plane, over, aspect in zip(
            part.subplots(1, 3), one.planes, middle_planes_of(one), one.aspects, strict=True
        ):
            axes.imshow(plane, cmap="gray", aspect=aspect, interpolation="nearest")
            axes.imshow(over, cmap="inferno", alpha=0.45, vmin=low, vmax=high or 1, aspect=aspect)
            axes.axis("off")
    return figure


def middle_planes_of(shown: Attended) -> list[np.ndarray]:
    """The weights, upsampled linearly from the token grid, in the three planes of the volume."""
    (height, width), (depth, _) = shown.planes[0].shape, shown.planes[1].shape
    size = (depth, height, width)
    factors = [new / old for new, old in zip(size, shown.weights.shape, strict=True)]
    volume = zoom(shown.weights, factors, order=1, mode="nearest", grid_mode=True)
    return [
        volume[depth // 2, ::-1, ::-1],
        volume[::-1, height // 2, ::-1],
        volume[::-1, :, width // 2][:, ::-1],
    ]
