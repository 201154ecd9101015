"""A second look at the first K of a ranking: query and item meet in the fusion layers.

An ordering by pairs is no index: its cost grows with queries times K, so it is counted and told.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mg3d.metrics.retrieval import first_items

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D

BATCH = 64


@dataclass(frozen=True)
class Reranking:
    """``pair`` [T, T] float32 (text, volume), NaN where not computed, and what that took."""

    pair: np.ndarray
    pair_forwards: int
    seconds: float


@torch.no_grad()
def rerank(
    model: "MG3D",
    tokens: Sequence[Tensor],
    sentences: Sequence[Tensor],
    similarity: np.ndarray,
    top: int,
) -> Reranking:
    """`MG3D.match` of the ``top`` volumes of each text and the ``top`` texts of each volume.

    ``tokens`` T of [N, E], ``sentences`` T of [S, E], S varies; ``similarity`` [T, T] of the dual
    encoder, text by volume. A pair that both directions ask for is computed once.
    """
    own = np.eye(len(similarity), dtype=bool)
    asked = first_items(similarity, own, top) | first_items(similarity.T, own, top).T
    pair = np.full(similarity.shape, np.nan, dtype=np.float32)
    began = time.perf_counter()
    for text, row in enumerate(asked):
        found = np.flatnonzero(row)
        report = sentences[text][None]
        for start in range(0, len(found), BATCH):
            chosen = found[start : start + BATCH]
            image = torch.stack([tokens[volume] for volume in chosen])
            several = report.expand(len(chosen), -1, -1)
            mask = torch.ones(several.shape[:2], dtype=torch.bool, device=several.device)
            pair[text, chosen] = model.match(image, several, mask).cpu().numpy()
    return Reranking(pair, int(asked.sum()), time.perf_counter() - began)
