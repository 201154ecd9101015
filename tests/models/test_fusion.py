import math

import pytest
import torch
from torch import Tensor

from mg3d.models.fusion import (
    Aggregation,
    Fusion,
    FusionKind,
    GatedAttention,
    ImagePool,
    SentencePool,
    masked_mean,
)
from mg3d.models.text import sentence_means

WIDTH = 16
MASK = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.fixture(autouse=True)
def _float64() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def _gated_loop(layer: GatedAttention, own: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    """Equation 4.1 as written: every gate scales the value, then the rows are averaged."""
    out = torch.zeros_like(own)
    for b in range(len(own)):
        for i in range(own.shape[1]):
            rows = []
            for j in range(other.shape[1]):
                if mask is None or mask[b, j]:
                    score = layer.query(own[b, i]) @ layer.key(other[b, j]) / math.sqrt(WIDTH)
                    rows.append(torch.sigmoid(score) * layer.value(own[b, i]))
            if rows:
                out[b, i] = torch.stack(rows).mean(0)
    return out


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_closed_form_equals_the_loop_in_value_and_gradient(mask: Tensor | None) -> None:
    layer = GatedAttention(WIDTH)
    own = torch.randn(2, 4, WIDTH, requires_grad=True)
    other = torch.randn(2, 5, WIDTH, requires_grad=True)
    probe = torch.randn(2, 4, WIDTH)
    leaves = [own, other, *layer.parameters()]
    ours, loop = layer(own, other, mask), _gated_loop(layer, own, other, mask)
    torch.testing.assert_close(ours, loop, atol=1e-9, rtol=0)
    gradients = torch.autograd.grad((ours * probe).sum(), leaves)
    expected = torch.autograd.grad((loop * probe).sum(), leaves)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_an_open_question_halves_the_value() -> None:
    layer = GatedAttention(WIDTH)
    torch.nn.init.zeros_(layer.query.weight)
    torch.nn.init.zeros_(layer.query.bias)
    own = torch.randn(2, 4, WIDTH)
    torch.testing.assert_close(layer(own, torch.randn(2, 5, WIDTH), MASK), layer.value(own) / 2)


def test_a_token_depends_on_no_other_token_of_its_side() -> None:
    layer = GatedAttention(WIDTH)
    own, other = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
    changed = own.clone()
    changed[:, 1] += 1
    before, after = layer(own, other), layer(changed, other)
    same = (before == after).all(-1).all(0)
    assert same.tolist() == [True, False, True, True]


def test_what_is_masked_does_not_matter_and_nothing_valid_gives_zero() -> None:
    layer = GatedAttention(WIDTH)
    own, other = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
    other_too = torch.where(MASK[..., None], other, torch.tensor(7.0))
    torch.testing.assert_close(layer(own, other, MASK), layer(own, other_too, MASK))
    assert layer(own, other, torch.zeros_like(MASK)).abs().max() == 0


def test_two_layers_have_separate_weights_and_gate_each_other() -> None:
    fusion = Fusion(WIDTH, 2, FusionKind(), image=True, text=True)
    image, text = torch.randn(2, 3, WIDTH), torch.randn(2, 5, WIDTH)
    first, second = fusion.layers
    image1 = _gated_loop(first.image, image, text, MASK)
    text1 = _gated_loop(first.text, text, image, None)
    image2 = _gated_loop(second.image, image1, text1, MASK)
    text2 = _gated_loop(second.text, text1, image1, None)
    ours_image, ours_text = fusion(image, text, MASK)
    torch.testing.assert_close(ours_image, image2, atol=1e-9, rtol=0)
    torch.testing.assert_close(ours_text, text2, atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)])
def test_a_fusion_has_no_parameter_that_its_outputs_do_not_train(
    num_layers: int, sides: tuple[bool, bool]
) -> None:
    fusion = Fusion(WIDTH, num_layers, FusionKind(), image=sides[0], text=sides[1])
    outputs = fusion(torch.randn(2, 3, WIDTH), torch.randn(2, 5, WIDTH), MASK)
    assert tuple(output is not None for output in outputs) == sides
    sum(output.square().sum() for output in outputs if output is not None).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_sentence_means_are_the_means_of_their_tokens() -> None:
    tokens = torch.tensor(
        [[[9.0], [1.0], [3.0], [5.0], [9.0]], [[9.0], [2.0], [9.0], [9.0], [9.0]]]
    )
    index = torch.tensor([[-1, 0, 0, 2, -1], [-1, 0, -1, -1, -1]])
    listed = torch.tensor([[True, True, True], [True, True, False]])
    tokens.requires_grad_()
    means, mask = sentence_means(tokens, index, listed)
    assert means[..., 0].tolist() == [[2.0, 0.0, 5.0], [2.0, 0.0, 0.0]]
    # Sentence 1 of both reports has no token (truncated away): masked, not averaged.
    assert mask.tolist() == [[True, False, True], [True, False, False]]
    means.sum().backward()
    assert tokens.grad[..., 0].tolist() == [[0, 0.5, 0.5, 1, 0], [0, 1, 0, 0, 0]]


def test_masked_mean_by_hand() -> None:
    values = torch.tensor([[[1.0], [5.0], [9.0]], [[4.0], [4.0], [4.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [[3.0], [0.0]]
    assert masked_mean(values, None).tolist() == [[5.0], [4.0]]


def test_sentence_pool_equals_multihead_attention_of_each_report_alone() -> None:
    pool = SentencePool(WIDTH)
    reference = torch.nn.MultiheadAttention(WIDTH, 8, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(
            torch.cat([pool.query.weight, pool.key.weight, pool.value.weight])
        )
        reference.in_proj_bias.copy_(torch.cat([pool.query.bias, pool.key.bias, pool.value.bias]))
        reference.out_proj.load_state_dict(pool.out.state_dict())
    sentences = torch.randn(2, 5, WIDTH)
    pooled = pool(sentences, MASK)
    for b in range(2):
        valid = sentences[b, MASK[b]][None]
        mean = valid.mean(1, keepdim=True)
        keys = torch.cat([mean, valid], 1)
        expected = reference(mean, keys, keys)[0][0, 0]
        torch.testing.assert_close(pooled[b], expected, atol=1e-9, rtol=0)


def test_pools_ignore_order_and_padding_and_survive_an_empty_report() -> None:
    pool, sentences = SentencePool(WIDTH), torch.randn(2, 5, WIDTH)
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(pool(sentences, MASK), pool(sentences[:, order], MASK[:, order]))
    padded = torch.nn.functional.pad(sentences, (0, 0, 0, 3), value=5.0)
    padded_mask = torch.nn.functional.pad(MASK, (0, 3))
    torch.testing.assert_close(pool(sentences, MASK), pool(padded, padded_mask))
    assert pool(sentences, torch.zeros_like(MASK)).isfinite().all()
    image_pool = ImagePool(WIDTH)
    for num_tokens in (1, 48, 27):
        tokens = torch.randn(2, num_tokens, WIDTH)
        expected = torch.tanh(image_pool.linear(tokens.mean(1)))
        torch.testing.assert_close(image_pool(tokens), expected)


def test_aggregation_equals_the_loop() -> None:
    """Equation 4.6 for each report and sentence on its own."""
    aggregation = Aggregation(WIDTH, 2, pooled=True)
    sentences, image_global = torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH)
    aggregated, informed = aggregation(sentences, MASK, image_global)
    for b in range(2):
        query, current = image_global[b], list(sentences[b])
        for layer in aggregation.layers:
            current = [
                torch.sigmoid(layer.key(query) @ layer.query(t) / math.sqrt(WIDTH)) * layer.value(t)
                for t in current
            ]
            mean = torch.stack(
                [t for t, valid in zip(current, MASK[b], strict=True) if valid]
            ).mean(0)
            query = torch.tanh(aggregation.pool(mean))
        torch.testing.assert_close(aggregated[b], query, atol=1e-9, rtol=0)
        torch.testing.assert_close(informed[b], torch.stack(current), atol=1e-9, rtol=0)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("pooled", [True, False])
def test_an_aggregation_has_no_parameter_that_its_outputs_do_not_train(
    num_layers: int, pooled: bool
) -> None:
    aggregation = Aggregation(WIDTH, num_layers, pooled=pooled)
    aggregated, informed = aggregation(torch.randn(2, 5, WIDTH), MASK, torch.randn(2, WIDTH))
    assert (aggregated is not None) == pooled
    (informed.square().sum() + (aggregated.sum() if aggregated is not None else 0)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aggregation.parameters())
