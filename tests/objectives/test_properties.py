"""Random shapes and precisions: terms stay finite, in their range, and blind to what is no content.

Covered by the draws: one sample, one sentence, empty reports, zero vectors, half precision, tiles.
"""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mg3d.objectives.contrastive import info_nce
from mg3d.objectives.mim import mim_loss
from mg3d.objectives.mlm import IGNORED, mlm_loss
from mg3d.objectives.sfr import sfr_loss
from mg3d.objectives.ssm import ssm_loss

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHUNKS = st.none() | st.integers(1, 4)
often = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Draw:
    """Features [n, S, C] of two kinds and which sentences exist, some rows of them zero."""

    left: Tensor
    right: Tensor
    mask: Tensor


@st.composite
def draws(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Draw:
    n, sentences, width = (draw(st.integers(1, high)) for high in (5, 4, 6))
    lengths = draw(st.lists(st.integers(0, sentences), min_size=n, max_size=n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from((1e-3, 1.0, 1e3)))
    left, right = torch.randn(2, n, sentences, width, generator=generator) * scale
    if draw(st.booleans()):
        left[0], right[-1] = 0, 0
    dtype = draw(st.sampled_from(dtypes))
    mask = torch.arange(sentences) < torch.tensor(lengths)[:, None]
    return Draw(left.to(dtype).requires_grad_(), right.to(dtype), mask)


def _check(loss: Tensor, leaf: Tensor, low: float, high: float) -> None:
    assert loss.isfinite()
    assert low - 1e-3 <= loss <= high + 1e-3
    (gradient,) = torch.autograd.grad(loss, leaf)
    # 1/τ over a norm of nearly nothing exceeds float16's 65504; nothing trains in float16
    assert leaf.dtype == torch.float16 or gradient.isfinite().all()


@often
@given(drawn=draws(), chunk=CHUNKS)
def test_contrast(drawn: Draw, chunk: int | None) -> None:
    """Between 0 and log n + 2/τ, the worst that cosines of ±1 can do; sides may be swapped."""
    left, right = drawn.left[:, 0], drawn.right[:, 0]
    loss = info_nce(left, right, 0.1, chunk=chunk)
    _check(loss, drawn.left, 0, math.log(len(left)) + 2 / 0.1)
    torch.testing.assert_close(info_nce(right, left, 0.1), loss, rtol=1e-4, atol=1e-4)


@often
@given(drawn=draws(), chunk=CHUNKS)
def test_sentence_pairs(drawn: Draw, chunk: int | None) -> None:
    loss = ssm_loss(drawn.left, drawn.right, drawn.mask, 0.5, 0.2, chunk=chunk)
    _check(loss, drawn.left, 0, 2)
    if len(drawn.mask) == 1:
        assert loss == 0


@often
@given(drawn=draws(), reduction=st.sampled_from(("sum", "mean")))
def test_reconstructed_sentences(drawn: Draw, reduction: str) -> None:
    loss = sfr_loss(drawn.left, drawn.right, drawn.mask, reduction)  # type: ignore[arg-type]
    _check(loss, drawn.left, 0, 2 * (1 if reduction == "mean" else drawn.mask.shape[1]))
    if not drawn.mask.any():
        assert loss == 0


@often
@given(drawn=draws(), share=st.sampled_from((0.0, 0.5, 1.0)))
def test_words_and_voxels_with_none_or_all_masked(drawn: Draw, share: float) -> None:
    logits = drawn.left.flatten(0, 1)
    chosen = torch.arange(len(logits)) < share * len(logits)
    labels = torch.where(chosen, 0, IGNORED)[None]
    _check(mlm_loss(logits[chosen], labels), drawn.left, 0, math.inf)
    if drawn.left.abs().max() < 100:  # squares must fit
        voxels = chosen.view(drawn.mask.shape)[..., None].expand_as(drawn.left)
        loss = mim_loss(drawn.left, drawn.right, voxels)
        _check(loss, drawn.left, 0, math.inf)
        (gradient,) = torch.autograd.grad(mim_loss(drawn.left, drawn.right, voxels), drawn.left)
        assert not gradient[~voxels].any(), "what is not masked does not matter"


@often
@given(drawn=draws((torch.float64,)), extra=st.integers(1, 3), seed=st.integers(0, 99))
def test_padding_and_the_order_of_patients_and_sentences_do_not_matter(
    drawn: Draw, extra: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    patients = torch.randperm(len(drawn.mask), generator=generator)
    sentences = torch.randperm(drawn.mask.shape[1] + extra, generator=generator)

    def changed(x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, extra), value=7.0)  # rubbish, but masked
        return padded[patients][:, sentences]

    mask = F.pad(drawn.mask, (0, extra))[patients][:, sentences]
    left, right = changed(drawn.left), changed(drawn.right)
    same = {"rtol": 1e-9, "atol": 1e-9}
    for before, after in (
        (
            ssm_loss(drawn.left, drawn.right, drawn.mask, 0.5, 0.2),
            ssm_loss(left, right, mask, 0.5, 0.2),
        ),
        (sfr_loss(drawn.left, drawn.right, drawn.mask), sfr_loss(left, right, mask)),
        (
            info_nce(drawn.left[:, 0], drawn.right[:, 0], 0.1),
            info_nce(drawn.left[patients, 0], drawn.right[patients, 0], 0.1),
        ),
    ):
        torch.testing.assert_close(after, before, **same)


@pytest.mark.parametrize("width", [1, 4])
def test_identical_sentences_of_two_patients_are_pulled_to_their_similarity(width: int) -> None:
    """Spec/model invariant 15: the minimum of SSM is Ĝ = G, here 1."""
    text = torch.ones(2, 1, 3)
    assert ssm_loss(torch.ones(2, 1, width), text, torch.ones(2, 1).bool(), 0.9, 0.6) < 1e-6
