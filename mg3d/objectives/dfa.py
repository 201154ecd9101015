"""DFA (spec/model 4.6): the fused image global against the text that it aggregates."""

from torch import Tensor

from mg3d.objectives.contrastive import Gather, info_nce, one_rank


def dfa_loss(
    image: Tensor,
    text: Tensor,
    temperature: float,
    gather: Gather = one_rank,
    chunk: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE of [b, E] and [b, E] over the samples of all ranks -> scalar.

    The text side is built from sentences that the image gates.
    """
    return info_nce(image, text, temperature, gather, chunk)
