"""Image-text contrast of the two uni-modal globals. Ours, not the paper's."""

from torch import Tensor

from mg3d.objectives.contrastive import Gather, info_nce, one_rank


def itc_loss(
    image: Tensor,
    text: Tensor,
    temperature: float,
    gather: Gather = one_rank,
    chunk: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE of [b, E] and [b, E] over the samples of all ranks -> scalar.

    It trains the dual encoder of encode_image and encode_text.
    """
    return info_nce(image, text, temperature, gather, chunk)
