"""Global cross-modal alignment (spec/model 4.5): fused globals against uni-modal ones."""

from torch import Tensor

from mg3d.objectives.contrastive import Gather, info_nce, one_rank


def cml_loss(
    fused: Tensor,
    unimodal: Tensor,
    temperature: float,
    gather: Gather = one_rank,
    chunk: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE of [b, E] and [b, E] over the samples of all ranks -> scalar.

    Both sides hold the same report's text, so text alone can lower it: watch retrieval too.
    """
    return info_nce(fused, unimodal, temperature, gather, chunk)
