"""Pools and layers of the fusion: each closed form against the loop it replaces."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mg3d.models.fusion import (
    CrossAttention,
    Fusion,
    FusionKind,
    GatedAttention,
    GatedResidual,
    Pool,
)

WIDTH = 16
MASK = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
KINDS = [
    FusionKind("gated", "attention", "mean"),
    FusionKind("gated", "mean", "linear", 3),
    FusionKind("gated_residual"),
    FusionKind("gated_residual", "attention", "linear", 3),
    FusionKind("cross_attention"),
]


def name(kind: FusionKind) -> str:
    return f"{kind.layer}-{kind.image_pool}-{kind.text_pool}"


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def rows_of(layer: GatedAttention, own: Tensor, other: Tensor) -> Tensor:
    """g_ij v_i for one token i, [m, E]: what equation 4.1 pools, one pair at a time."""
    value = layer.value(own)
    scores = [layer.query(own) @ layer.key(y) / WIDTH**0.5 for y in other]
    return torch.stack([torch.sigmoid(score) * value for score in scores])


def pooled_by_loop(layer: GatedAttention, own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    out = []
    for b in range(len(own)):
        for x in own[b]:
            rows = rows_of(layer, x, other[b])
            if isinstance(layer.pool, torch.nn.Linear):
                weights = layer.pool.weight[0] * mask[b]
                out.append(sum(w * row for w, row in zip(weights, rows, strict=True)))
                out[-1] = out[-1] + layer.pool.bias
            else:
                assert layer.pool is not None
                valid = rows[mask[b]][None]
                every = torch.ones(1, valid.shape[1], dtype=torch.bool)
                out.append(layer.pool(valid, every)[0])
    return torch.stack(out).view_as(own)


@pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK], ids=["all", "masked"])
@pytest.mark.parametrize("pool", ["linear", "attention"])
def test_closed_form_equals_the_loop_in_value_and_gradient(pool: Pool, mask: Tensor) -> None:
    layer = GatedAttention(WIDTH, pool, num_other=5)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # biases too, and logits that differ
    own = torch.randn(2, 4, WIDTH, requires_grad=True)
    other = torch.randn(2, 5, WIDTH, requires_grad=True)
    probe = torch.randn(2, 4, WIDTH)
    leaves = [own, other, *layer.parameters()]
    ours, loop = layer(own, other, mask), pooled_by_loop(layer, own, other, mask)
    torch.testing.assert_close(ours, loop, atol=1e-9, rtol=0)
    gradients = torch.autograd.grad((ours * probe).sum(), leaves)
    expected = torch.autograd.grad((loop * probe).sum(), leaves)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("pool", ["linear", "attention"])
def test_a_pool_without_anything_valid_is_finite(pool: Pool) -> None:
    layer = GatedAttention(WIDTH, pool, num_other=5)
    nothing = torch.zeros_like(MASK)
    assert layer(torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH), nothing).isfinite().all()


def test_residual_adds_the_token_to_its_scaled_value() -> None:
    plain, residual = GatedAttention(WIDTH), GatedResidual(WIDTH)
    residual.load_state_dict(plain.state_dict())
    own, other = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(residual(own, other, MASK), own + plain(own, other, MASK))


def test_cross_attention_of_one_key_adds_its_projected_value() -> None:
    """With one valid key beside the zero key, attention is a weighted value: by hand."""
    layer = CrossAttention(WIDTH)
    torch.nn.init.zeros_(layer.mlp[-1].weight)
    torch.nn.init.zeros_(layer.mlp[-1].bias)
    torch.nn.init.zeros_(layer.attention.in_proj_weight[: 2 * WIDTH])  # logits 0: weights 1/2
    torch.nn.init.zeros_(layer.attention.in_proj_bias)
    own, other = torch.randn(1, 2, WIDTH), torch.randn(1, 1, WIDTH)
    value = other @ layer.attention.in_proj_weight[2 * WIDTH :].T / 2
    expected = own + layer.attention.out_proj(value)
    torch.testing.assert_close(layer(own, other), expected)
    nothing = torch.zeros(1, 1, dtype=torch.bool)
    assert layer(own, other, nothing).isfinite().all()


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_padding_and_order_of_the_other_side_do_not_matter(kind: FusionKind) -> None:
    fusion = Fusion(WIDTH, 2, kind, image=True, text=True)
    image, text = torch.randn(2, 3, WIDTH), torch.randn(2, 5, WIDTH)
    before = fusion(image, text, MASK)
    changed = torch.where(MASK[..., None], text, torch.tensor(7.0))
    padded = torch.cat([changed, torch.randn(2, 2, WIDTH)], dim=1)
    after = fusion(image, padded, torch.nn.functional.pad(MASK, (0, 2)))
    torch.testing.assert_close(before[0], after[0])
    torch.testing.assert_close(before[1][MASK], after[1][:, :5][MASK])
    order = torch.randperm(5)
    permuted = fusion(image, text[:, order], MASK[:, order])
    torch.testing.assert_close(before[0], permuted[0])
    torch.testing.assert_close(before[1][:, order], permuted[1])


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_no_parameter_is_dead(kind: FusionKind, sides: tuple[bool, bool]) -> None:
    fusion = Fusion(WIDTH, 2, kind, image=sides[0], text=sides[1])
    outputs = fusion(torch.randn(2, 3, WIDTH), torch.randn(2, 5, WIDTH), MASK)
    sum(output.pow(3).sum() for output in outputs if output is not None).backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, f"{key} is dead: DDP would wait for it"
        # the bias of a pool's keys shifts all logits alike
        assert key.endswith("pool.key.bias") or parameter.grad.abs().sum() > 0, key


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("pool", ["mean", "linear", "attention"])
def test_no_tensor_has_a_row_for_every_pair(pool: Pool) -> None:
    width, n, m = 64, 40, 50
    layer = GatedAttention(width, pool, num_other=m)
    own = torch.randn(1, n, width, requires_grad=True)
    with Largest() as seen:
        layer(own, torch.randn(1, m, width), torch.ones(1, m, dtype=torch.bool)).sum().backward()
    assert seen.elements < n * m * width / 4


@pytest.mark.parametrize("layer", ["gated", "gated_residual", "cross_attention"])
@pytest.mark.parametrize("sides", [(True, True), (True, False)])
def test_sentence_weights_are_of_what_the_last_layer_reads(
    layer: Literal["gated", "gated_residual", "cross_attention"], sides: tuple[bool, bool]
) -> None:
    fusion = Fusion(WIDTH, 2, FusionKind(layer), image=sides[0], text=sides[1]).eval()
    image, text = torch.randn(2, 3, WIDTH), torch.randn(2, 5, WIDTH)
    weights = fusion.sentence_weights(image, text, MASK)
    assert weights.shape == (2, 5, 3)
    inner, last = fusion.layers
    image, text = inner(image, text, MASK)
    side, own, other = (last.text, text, image) if sides[1] else (last.image, image, text)
    if layer == "cross_attention":
        _, expected = side.attention(side.norm(own), other, other)
        assert (weights.sum(-1) < 1).all() if sides[1] else True  # the zero key has the rest
        expected = expected[..., :-1]
    else:
        scores = torch.einsum("bie,bje->bij", side.query(own), side.key(other))
        expected = torch.sigmoid(scores / WIDTH**0.5)
    torch.testing.assert_close(weights, expected if sides[1] else expected.transpose(1, 2))
