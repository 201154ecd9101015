"""Sentence feature reconstruction from masked words (spec/model 4.2, target as recommended)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from mg3d.objectives.contrastive import EPS, Gather, full_precision, one_rank
from mg3d.objectives.mean import mean_over_ranks


def sfr_loss(
    prediction: Tensor,
    target: Tensor,
    sentence_mask: Tensor,
    reduction: Literal["sum", "mean"] = "sum",
    gather: Gather = one_rank,
    target_learns: bool = False,
) -> Tensor:
    """(1/B) Σ_b Σ_s (1 − cos(r_bs, τ_bs)) over the valid sentences of the B reports of all ranks.

    prediction, target [b, S, C]; sentence_mask [b, S]; no gradient reaches the target, unless
    ``target_learns`` (as published). The reference sums over sentences, so the loss grows with
    their number; ``mean`` divides by it.
    """
    target = target if target_learns else target.detach()
    cosine = F.cosine_similarity(
        full_precision(prediction), full_precision(target), dim=-1, eps=EPS
    )
    per_report = ((1 - cosine) * sentence_mask).sum(dim=1)
    if reduction == "mean":
        per_report = per_report / sentence_mask.sum(dim=1).clamp(min=1)
    return mean_over_ranks(per_report.sum(), len(per_report), gather)
