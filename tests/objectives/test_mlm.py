import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mg3d.objectives.mlm import IGNORED, mask_words, mlm_loss

MASK_ID, VOCABULARY_SIZE = 3, 1000


def _report(words: list[list[int]], padding: int = 3) -> tuple[Tensor, Tensor]:
    """[CLS] words [SEP] [PAD]...; each report is a list of word sizes in tokens."""
    length = max(map(sum, words)) + 2 + padding
    ids = torch.zeros(len(words), length, dtype=torch.long)
    index = torch.full_like(ids, -1)
    for row, sizes in enumerate(words):
        position = 1
        for number, size in enumerate(sizes):
            index[row, position : position + size] = number
            position += size
        ids[row, 0], ids[row, position] = 1, 2
        ids[row, 1:position] = torch.arange(1, position) + 10
    return ids, index


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.lists(st.integers(1, 5), max_size=30), min_size=1, max_size=4),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31),
)
def test_whole_words_within_the_budget(words: list[list[int]], fraction: float, seed: int) -> None:
    ids, index = _report(words)
    generator = torch.Generator().manual_seed(seed)
    masked, labels = mask_words(ids, index, fraction, MASK_ID, VOCABULARY_SIZE, generator)
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], ids[chosen])  # labels are the original ids,
    assert torch.equal(masked[~chosen], ids[~chosen])  # and nothing else is touched:
    assert not chosen[index < 0].any()  # no special token, no padding.
    for row, sizes in enumerate(words):
        picked = set(index[row][chosen[row]].tolist())
        for number in range(len(sizes)):  # whole words
            assert chosen[row][index[row] == number].all() == (number in picked)
        num_chosen, budget = int(chosen[row].sum()), fraction * sum(sizes)
        if sizes:
            assert picked  # at least one word
            assert num_chosen <= max(budget + max(sizes) / 2, max(sizes))
            if len(picked) < len(sizes):
                assert num_chosen >= budget - max(sizes) / 2


def test_one_word_in_a_short_report_by_hand() -> None:
    """3 tokens x 0.15 is less than a token: still one word, whichever is drawn first."""
    ids, index = _report([[2, 1]])
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        _, labels = mask_words(ids, index, 0.15, MASK_ID, VOCABULARY_SIZE, generator)
        seen.add(tuple(index[0][labels[0] != IGNORED].tolist()))
    assert seen == {(0, 0), (1,)}


def test_rates() -> None:
    """15 ± 1 % of real tokens, of which 80 % [MASK], 10 % random, 10 % kept."""
    sizes = [1, 1, 2, 1, 3, 1, 1, 2, 1, 1] * 4
    ids, index = _report([sizes] * 2000, padding=100)  # padding must not compete for the budget
    generator = torch.Generator().manual_seed(0)
    masked, labels = mask_words(ids, index, 0.15, MASK_ID, VOCABULARY_SIZE, generator)
    chosen = labels != IGNORED
    assert chosen.sum() / (index >= 0).sum() == pytest.approx(0.15, abs=0.005)
    is_mask, is_kept = masked[chosen] == MASK_ID, masked[chosen] == ids[chosen]
    assert is_mask.float().mean() == pytest.approx(0.8, abs=0.01)
    assert is_kept.float().mean() == pytest.approx(0.1, abs=0.01)
    random_ids = masked[chosen][~is_mask & ~is_kept]
    assert random_ids.min() >= 0
    assert random_ids.max() < VOCABULARY_SIZE
    assert len(random_ids.unique()) > 700
    per_word = torch.stack([(chosen & (index == n)).any(1).float().mean() for n in range(40)])
    assert per_word.max() < 0.2  # no word is favoured by its place
    assert per_word.min() > 0.1


def test_the_generator_alone_decides() -> None:
    ids, index = _report([[1] * 40])

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return mask_words(ids, index, 0.15, MASK_ID, VOCABULARY_SIZE, generator)[1]

    torch.manual_seed(1)
    first = draw(0)
    torch.manual_seed(2)
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))


def test_loss_by_hand() -> None:
    """Two chosen tokens with probabilities 0.5 and 0.25: ½(ln 2 + ln 4)."""
    labels = torch.tensor([[IGNORED, 0], [2, IGNORED]])
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    expected = (math.log(2) + math.log(4)) / 2
    assert mlm_loss(logits, labels).item() == pytest.approx(expected, abs=1e-12)


def test_gradient_is_probability_minus_target_over_the_number_of_tokens() -> None:
    labels = torch.tensor([[IGNORED, 0, 1]])
    logits = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    mlm_loss(logits, labels).backward()
    expected = (torch.full((2, 4), 0.25) - torch.eye(2, 4)).double() / 2
    torch.testing.assert_close(logits.grad, expected)


def test_nothing_chosen_costs_nothing() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = mlm_loss(logits, torch.full((2, 3), IGNORED))
    loss.backward()
    assert loss.item() == 0


def test_ranks_with_unequal_numbers_of_tokens_are_one_batch(
    on_ranks: Callable[..., Tensor],
) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([[0, 1, 4, 2], [IGNORED, IGNORED, 3, IGNORED]])
    logits = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    whole = mlm_loss(logits, labels)
    parts = (logits[:4], logits[4:])
    shared = on_ranks(2, lambda r, gather: mlm_loss(parts[r], labels[r : r + 1], gather))
    torch.testing.assert_close(shared, whole)
    torch.testing.assert_close(
        torch.autograd.grad(shared, logits)[0], torch.autograd.grad(whole, logits)[0]
    )
