"""In tiles or at once: the same value and gradient, but memory that does not grow with n²."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mg3d.objectives.contrastive import info_nce
from mg3d.objectives.objective import objective
from mg3d.objectives.ssm import ssm_loss
from mg3d.params import Objective

from .recorder import Memory
from .test_objective import INPUTS, _outputs

CHUNKS = [1, 3, 7, 100]


def _rows(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(n)
    left, right = torch.randn(2, n, 6, dtype=dtype)
    return left.requires_grad_(), right.requires_grad_()


def _sentences(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n)
    visual = torch.randn(n, 4, 6, dtype=dtype, requires_grad=True)
    mask = torch.arange(4) < torch.arange(n)[:, None] % 5  # also reports without sentences
    return visual, torch.randn(n, 4, 3, dtype=dtype), mask


def _same(found: Tensor, expected: Tensor, leaves: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(found * 3, leaves),
        torch.autograd.grad(expected * 3, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("n", [1, 7])
def test_contrast_is_the_plain_one(n: int, chunk: int) -> None:
    left, right = _rows(n)
    _same(info_nce(left, right, 0.1, chunk=chunk), info_nce(left, right, 0.1), (left, right))
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.1, chunk=chunk), (left, right))


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("n", [1, 2, 11])
def test_sentence_pairs_are_the_plain_ones(n: int, chunk: int) -> None:
    visual, text, mask = _sentences(n)
    plain = ssm_loss(visual, text, mask, 0.5, 0.2)
    assert (plain > 0) == (n > 2)  # the first report is empty
    _same(ssm_loss(visual, text, mask, 0.5, 0.2, chunk=chunk), plain, (visual,))


def test_tiles_over_two_ranks(on_ranks: Callable[..., Tensor]) -> None:
    left, right = _rows(7)
    parts = (slice(0, 5), slice(5, 7))
    shared = on_ranks(
        2, lambda r, gather: info_nce(left[parts[r]], right[parts[r]], 0.1, gather, 3)
    )
    _same(shared, info_nce(left, right, 0.1), (left, right))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zero_vectors_are_finite_in_half_precision(dtype: torch.dtype) -> None:
    left = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    loss = info_nce(left, torch.ones(3, 4, dtype=dtype), 0.1, chunk=2)
    assert loss.item() == pytest.approx(1.0986, abs=1e-4)
    assert torch.autograd.grad(loss, left)[0].isfinite().all()


def test_the_setting_reaches_every_term() -> None:
    """With it no term makes a matrix of all pairs; the losses are the same."""
    weights = {f"{term}_weight": 1.0 for term in ("cml", "dfa", "ssm", "itc")}
    off = {f"{term}_weight": 0.0 for term in ("mlm", "sfr", "mim")}
    outputs, tiled = _outputs(), Objective(**weights, **off, contrastive_chunk=1)
    n = 40
    for name in ("cml_fused", "cml_unimodal", "dfa_image", "dfa_text", "itc_image", "itc_text"):
        setattr(outputs, name, torch.randn(n, 3))
    outputs.ssm_visual, outputs.ssm_text = torch.randn(n, 1, 3), torch.randn(n, 1, 3)
    outputs.sentence_mask = torch.ones(n, 1, dtype=torch.bool)
    plain = objective(outputs, INPUTS, tiled.model_copy(update={"contrastive_chunk": None}))
    with Memory() as memory:
        losses = objective(outputs, INPUTS, tiled)
    for term, loss in losses.items():
        torch.testing.assert_close(loss, plain[term], msg=term)
    assert memory.largest < n * n * 4


def _contrast(n: int, chunk: int | None) -> Callable[[], None]:
    rows = _rows(n, torch.float32)
    return lambda: torch.autograd.grad(info_nce(*rows, 0.1, chunk=chunk), rows)


def _pairs(n: int, chunk: int | None) -> Callable[[], None]:
    visual, text, mask = _sentences(n, torch.float32)
    return lambda: torch.autograd.grad(ssm_loss(visual, text, mask, 0.5, 0.2, chunk=chunk), visual)


@pytest.mark.parametrize(
    ("step", "chunk", "sizes", "width"),
    [(_contrast, 32, (256, 1024), 6), (_pairs, 8, (32, 128), 4 * 6)],
)
def test_memory_grows_with_the_features_only(
    step: Callable[..., Callable[[], None]], chunk: int, sizes: tuple[int, int], width: int
) -> None:
    """Four times the batch: sixteen times the memory at once; in tiles, four times the features'.

    What is not features, the tiles, stays as it is.
    """

    def measure(n: int, size: int | None) -> Memory:
        compute = step(n, size)
        with Memory() as memory:
            compute()
        return memory

    small, large = (measure(n, chunk) for n in sizes)
    tile = (chunk if step is _contrast else 4 * chunk) ** 2 * 4
    assert large.largest <= max(sizes[1] * width * 4, tile * 2)  # 64-bit while summing masks
    growth = (large.peak - small.peak) / (sizes[1] - sizes[0]) / (width * 4)
    assert growth < 9  # features, their normalised rows, gradients, and a few numbers per row
    once_small, once_large = (measure(n, None) for n in sizes)
    assert once_large.peak > 15 * once_small.peak
    assert large.peak < once_large.peak / 25
