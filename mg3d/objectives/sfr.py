"""Sentence feature reconstruction from masked words (spec/model 4.2, target as recommended)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mg3d.objectives.contrastive import EPS, full_precision


def sfr_loss(
    prediction: Tensor,
    target: Tensor,
    sentence_mask: Tensor,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """(1/B) Σ_b Σ_s (1 − cos(r_bs, τ_bs)) over the valid sentences.

    prediction, target [B, S, C]; sentence_mask [B, S]; no gradient reaches the target. The
    reference sums over sentences, so the loss grows with their number; ``mean`` divides by it.
    """
    cosine = F.cosine_similarity(
        full_precision(prediction), full_precision(target.detach()), dim=-1, eps=EPS
    )
    per_report = ((1 - cosine) * sentence_mask).sum(dim=1)
    if reduction == "mean":
        per_report = per_report / sentence_mask.sum(dim=1).clamp(min=1)
    return per_report.mean()
