"""Order and random numbers are functions of seed and step, whatever the number of ranks."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.training.order import (
    epoch_order,
    generator,
    global_batches,
    nested_subset,
    random_state,
    set_random_state,
)


@given(st.integers(0, 3), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_every_epoch_uses_every_sample_once_and_no_batch_repeats_one(
    seed: int, num_samples: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, num_samples))
    num_epochs = batch_size  # after which the stream ends with a batch
    num_batches = num_samples * num_epochs // batch_size
    batches = list(itertools.islice(global_batches(seed, num_samples, batch_size), num_batches))
    assert all(len(set(batch)) == batch_size for batch in batches)
    stream = [index for batch in batches for index in batch]
    for start in range(0, len(stream), num_samples):
        assert sorted(stream[start : start + num_samples]) == list(range(num_samples))


def test_starting_later_is_the_same_stream() -> None:
    whole = list(itertools.islice(global_batches(5, 23, 8), 12))
    assert list(itertools.islice(global_batches(5, 23, 8, start_step=7), 5)) == whole[7:]


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(seed, epoch, 30)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert epoch_order(0, 1, 30) == list(orders[1])


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size 16 exceeds the 9 training samples.*at most 9"
    ):
        global_batches(0, 9, 16)


def test_generators_depend_on_every_key_and_on_nothing_else() -> None:
    keys = [(0, "mask", 1, 2), (1, "mask", 1, 2), (0, "mask", 2, 1), (0, "word", 1, 2)]
    draws = [torch.rand(4, generator=generator(*key)) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    torch.manual_seed(99)
    assert torch.equal(torch.rand(4, generator=generator(*keys[0])), draws[0])


def test_order_is_uniform() -> None:
    """Each sample comes first about equally often (chi-square, 9 degrees, far tail)."""
    firsts = Counter(epoch_order(0, epoch, 10)[0] for epoch in range(500))
    assert sum((firsts[i] - 50) ** 2 / 50 for i in range(10)) < 30


def test_the_random_state_of_any_rank_is_put_back() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    first = random_state(cpu)
    torch.rand(5)
    both = torch.stack([first, random_state(cpu)])
    expected = torch.rand(4)
    set_random_state(both[1], cpu)
    assert torch.equal(torch.rand(4), expected)


@given(st.integers(0, 3), st.integers(1, 40), st.floats(0.01, 1), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_a_smaller_share_of_the_studies_is_in_a_larger_one(
    seed: int, num: int, first: float, second: float
) -> None:
    study_ids = [f"study-{i}" for i in range(num)]
    small, large = (nested_subset(seed, study_ids, f) for f in sorted((first, second)))
    assert small <= large <= set(study_ids)
    assert len(small) == max(1, round(min(first, second) * num))
    assert nested_subset(seed, reversed(study_ids), 1.0) == set(study_ids)
    assert nested_subset(seed, reversed(study_ids), first) == nested_subset(seed, study_ids, first)


def test_seeds_choose_other_studies() -> None:
    study_ids = [f"study-{i}" for i in range(40)]
    assert nested_subset(0, study_ids, 0.5) != nested_subset(1, study_ids, 0.5)
