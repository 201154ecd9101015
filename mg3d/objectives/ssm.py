"""Inter-patient sentence similarity matching (spec/model 4.7)."""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mg3d.objectives.contrastive import EPS, Gather, full_precision, one_rank


def ssm_loss(
    visual: Tensor,
    text: Tensor,
    sentence_mask: Tensor,
    similar_from: float,
    dissimilar_to: float,
    gather: Gather = one_rank,
    chunk: int | None = None,
) -> Tensor:
    """Sentences of different patients: visual similarity follows clear textual similarity.

    visual [b, S, C], text [b, S, E], sentence_mask [b, S]. With G and Ĝ the cosines of the text and
    of the visual features of two samples i < j of all ranks, P = G ≥ similar_from and Q = G ≤
    dissimilar_to: ℓ_ij = Σ |Ĝ∘(P+Q) − G∘P| / (S_i S_j), averaged over the pairs whose reports both
    have sentences. Pairs in between count in the denominator only. No gradient reaches the text.
    0 for a single sample.

    The Gram matrices of n samples are [n S, n S]. With ``chunk`` only those of chunk x chunk
    samples exist at a time, made again on the way back; value and gradient are the same.
    """
    with torch.autocast(visual.device.type, enabled=False):
        visual, text, mask = _gather(visual, text.detach(), sentence_mask, gather)
        visual, text = (F.normalize(x, dim=-1, eps=EPS) for x in (visual, text))
        places = torch.arange(len(mask), device=mask.device)
        size = chunk or max(1, len(mask))
        # split, not slices: the gradient of a slice is as large as what it was cut from
        cut = (x.split(size) for x in (visual, text, mask, places))
        parts = [_Part(*columns) for columns in zip(*cut, strict=True)]
        pair_of_parts: Callable[..., Tensor] = partial(_errors, similar_from, dissimilar_to)
        if chunk is not None:
            pair_of_parts = partial(
                checkpoint, pair_of_parts, use_reentrant=False, preserve_rng_state=False
            )
        pairs = combinations_with_replacement(parts, 2)
        total = torch.stack([pair_of_parts(left, right) for left, right in pairs]).sum()
        num_valid = mask.any(dim=1).sum()
        return total / (num_valid * (num_valid - 1) / 2).clamp(min=1)


class _Part(NamedTuple):
    """Samples in a row, features normalised: [n, S, C], [n, S, E], [n, S] and their places [n]."""

    visual: Tensor
    text: Tensor
    mask: Tensor
    place: Tensor


def _errors(similar_from: float, dissimilar_to: float, left: _Part, right: _Part) -> Tensor:
    """Σ ℓ_ij over samples i on the left and j on the right whose place is higher -> scalar."""
    g = left.text.flatten(0, 1) @ right.text.flatten(0, 1).T  # [n S, m S]
    g_hat = left.visual.flatten(0, 1) @ right.visual.flatten(0, 1).T
    similar = g >= similar_from
    judged = similar | (g <= dissimilar_to)
    valid = left.mask.flatten()[:, None] & right.mask.flatten()
    error = (g_hat * judged - g * similar).abs() * valid
    pairs = error.unflatten(0, left.mask.shape).unflatten(2, right.mask.shape).sum(dim=(1, 3))
    sizes = left.mask.sum(dim=1)[:, None] * right.mask.sum(dim=1)
    return (pairs / sizes.clamp(min=1) * (left.place[:, None] < right.place)).sum()


def _gather(
    visual: Tensor, text: Tensor, mask: Tensor, gather: Gather
) -> tuple[Tensor, Tensor, Tensor]:
    """All ranks' samples, padded to the largest number of sentences anywhere."""
    widest = gather(torch.tensor([mask.shape[1]], device=mask.device)).max()
    missing = int(widest) - mask.shape[1]
    rows = (0, 0, 0, missing)
    return (
        gather(F.pad(full_precision(visual), rows)),
        gather(F.pad(full_precision(text), rows)),
        gather(F.pad(mask, (0, missing)).to(torch.uint8)).bool(),
    )
