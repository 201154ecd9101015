"""Inter-patient sentence similarity matching (spec/model 4.7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.objectives.contrastive import EPS, Gather, full_precision, one_rank


def ssm_loss(
    visual: Tensor,
    text: Tensor,
    sentence_mask: Tensor,
    similar_from: float,
    dissimilar_to: float,
    gather: Gather = one_rank,
) -> Tensor:
    """Sentences of different patients: visual similarity follows clear textual similarity.

    visual [b, S, C], text [b, S, E], sentence_mask [b, S]. With G and Ĝ the cosines of the text and
    of the visual features of two samples i < j of all ranks, P = G ≥ similar_from and Q = G ≤
    dissimilar_to: ℓ_ij = Σ |Ĝ∘(P+Q) − G∘P| / (S_i S_j), averaged over the pairs whose reports both
    have sentences. Pairs in between count in the denominator only. No gradient reaches the text.
    0 for a single sample.
    """
    with torch.autocast(visual.device.type, enabled=False):
        visual, text, mask = _gather(visual, text.detach(), sentence_mask, gather)
        num_samples, num_sentences = mask.shape
        g = _cosines(text)  # [n S, n S]
        g_hat = _cosines(visual)
        similar = g >= similar_from
        judged = similar | (g <= dissimilar_to)
        valid = mask.flatten()
        error = (g_hat * judged - g * similar).abs() * (valid[:, None] & valid)
        counts = mask.sum(dim=1)
        pairs = error.view(num_samples, num_sentences, num_samples, num_sentences).sum(dim=(1, 3))
        pairs = pairs / (counts[:, None] * counts).clamp(min=1)
        upper = torch.triu(pairs, diagonal=1).sum()
        num_valid = (counts > 0).sum()
        return upper / (num_valid * (num_valid - 1) / 2).clamp(min=1)


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


def _cosines(x: Tensor) -> Tensor:
    """[n, S, C] -> cosine of every sentence with every other, [n S, n S]."""
    x = F.normalize(x.flatten(0, 1), dim=-1, eps=EPS)
    return x @ x.T
