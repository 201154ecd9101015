"""Where in the volume the fusion layers look for a sentence, as files and as a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mg3d.figures.sentence_attention import Attended, attention_sheet
from mg3d.finetuning.dual_encoding import sentences as cut
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case
from mg3d.metrics.findings import findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mg3d.models.mg3d import MG3D

FILE = "sentence_attention.npz"
NUM_CASES, NUM_SENTENCES = 3, 2


@torch.no_grad()
def write(
    folder: Path,
    model: "MG3D",
    cases: Sequence[Case],
    tokens: Sequence[Tensor],
    sentences: Sequence[Tensor],
    volumes: PackedCases,
) -> None:
    """Of a few of ``cases``, evenly spread, whose tokens [N, E] and sentences [S, E] are given:
    the weights over the token grid of the sentences that assert a finding, and three planes."""
    arrays: dict[str, np.ndarray] = {}
    shown = np.linspace(0, len(cases) - 1, min(NUM_CASES, len(cases))).astype(int)
    for number, index in enumerate(shown):
        case, image, report = cases[index], tokens[index][None], sentences[index][None]
        mask = torch.ones(report.shape[:2], dtype=torch.bool, device=report.device)
        weights = model.sentence_weights(image, report, mask).cpu()
        texts = cut(case.text)[: report.shape[1]]  # a cut report has lost its last sentences
        chosen = _telling(texts)
        grid = model.vision_encoder.grid(volumes.batch([case]))
        arrays[f"weights_{number}"] = weights[0, chosen].reshape(len(chosen), *grid).numpy()
        arrays[f"texts_{number}"] = np.array([texts[at] for at in chosen])
        for name, plane in volumes.middle_planes(case).items():
            arrays[f"{name}_{number}"] = plane
    arrays["spacing_mm"] = np.array(volumes.contract.spacing_mm)
    np.savez_compressed(folder / FILE, **arrays)  # type: ignore[arg-type]


def draw(folder: Path) -> "dict[str, Figure]":
    """``sentence_attention``, or nothing if there is no file."""
    if not (folder / FILE).exists():
        return {}
    shown = []
    with np.load(folder / FILE, allow_pickle=False) as file:
        depth, height, width = file["spacing_mm"].tolist()
        for number in range(sum(name.startswith("weights_") for name in file.files)):
            planes = [file[f"{name}_{number}"] for name in ("axial", "coronal", "sagittal")]
            shown += [
                Attended(
                    str(text), weights, planes, (height / width, depth / width, depth / height)
                )
                for text, weights in zip(
                    file[f"texts_{number}"], file[f"weights_{number}"], strict=True
                )
            ]
    return {"sentence_attention": attention_sheet(shown)}


def _telling(texts: Sequence[str]) -> list[int]:
    """Which sentences to show: those that assert a finding first, in the report's order."""
    first = sorted(range(len(texts)), key=lambda at: not findings(texts[at]))[:NUM_SENTENCES]
    return sorted(first)
