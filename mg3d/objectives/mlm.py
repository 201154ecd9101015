"""Masked language modelling with the image's help (spec/model 1.3, 4.2)."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mg3d.objectives.contrastive import Gather, full_precision, one_rank
from mg3d.objectives.mean import mean_over_ranks

#: Label of a token that the loss ignores.
IGNORED = -100


def mask_words(
    input_ids: Tensor,
    word_index: Tensor,
    fraction: float,
    mask_token_id: int,
    vocab_size: int,
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose whole words until ``fraction`` of a report's tokens is reached, and corrupt them.

    input_ids [B, L] long; word_index [B, L] long, 0-based whole word, -1 for specials and padding.
    Returns (masked_ids [B, L], labels [B, L]): labels are the original ids of the chosen tokens and
    -100 elsewhere. Of the chosen tokens 80 % become ``mask_token_id``, 10 % a random id below
    ``vocab_size``, 10 % stay. The budget counts real tokens; a word is taken if its middle still
    lies within it, so the expected share is ``fraction``; a report with words gives at least one.
    Draws on the generator's device.
    """
    device = generator.device if generator is not None else input_ids.device

    def draw() -> Tensor:
        return torch.rand(input_ids.shape, generator=generator, device=device).to(input_ids.device)

    real = word_index >= 0
    word = word_index.clamp(min=0)
    # One column per possible word: there are no more words than tokens.
    num_tokens = torch.zeros_like(word).scatter_add_(1, word, real.long())
    order = draw().masked_fill(num_tokens == 0, 2).argsort(dim=1)  # words first, shuffled
    size = num_tokens.gather(1, order)
    middle = size.cumsum(dim=1) - size / 2
    budget = fraction * real.sum(dim=1, keepdim=True)
    taken = (size > 0) & (middle <= budget)
    taken[:, 0] = size[:, 0] > 0
    chosen = torch.zeros_like(taken).scatter(1, order, taken).gather(1, word) & real

    fate = draw()
    random_ids = torch.randint(vocab_size, input_ids.shape, generator=generator, device=device).to(
        input_ids.device
    )
    masked_ids = input_ids.masked_fill(chosen & (fate < 0.8), mask_token_id)
    masked_ids = torch.where(chosen & (fate >= 0.9), random_ids, masked_ids)
    return masked_ids, input_ids.masked_fill(~chosen, IGNORED)


def mlm_loss(logits: Tensor, labels: Tensor, gather: Gather = one_rank) -> Tensor:
    """Mean cross-entropy over the chosen tokens of all ranks; 0 without any.

    logits [M, V] in the order of ``labels != -100``; labels [b, L].
    """
    target = labels[labels != IGNORED]
    total = F.cross_entropy(full_precision(logits), target, reduction="sum")
    return mean_over_ranks(total, len(target), gather)
