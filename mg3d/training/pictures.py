"""The figures of a pre-training, drawn at its end from its own record."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mg3d import paths
from mg3d.training.record import loss_history, read_metrics

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D, Inputs

LAST_FIGURE = "losses.png"  # the last one drawn: with it, the run is complete


@torch.no_grad()
def draw(
    out: Path,
    model: "MG3D",
    example: "Inputs | None",
    similarity: np.ndarray,
    metrics: Path,
    prefix: str,
) -> None:
    """Loss curves, one reconstructed validation study, similarity of validation pairs."""
    from mg3d.figures.pretraining import loss_curves, reconstruction, similarity_matrix

    if len(similarity):
        title = f"{len(similarity)} validation studies"
        _save_figure(out, "similarity.png", similarity_matrix(similarity, title))
    if example is not None and model.objective.mim_weight:
        seen, masked, rebuilt = (
            volume[0, 0].float().clamp(0, 1).cpu().numpy()
            for volume in (example.volume, example.masked_volume, model(example).reconstruction)
        )
        figure = reconstruction(seen, masked, rebuilt, "a validation study")
        _save_figure(out, "reconstruction.png", figure)
    _save_figure(out, LAST_FIGURE, loss_curves(loss_history(read_metrics(metrics), prefix)))


def _save_figure(out: Path, name: str, figure: Any) -> None:
    with paths.atomic_write(out / paths.FIGURES / name) as temporary:
        figure.savefig(temporary, dpi=110)
