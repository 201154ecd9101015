"""Masks belong to a sample and a step, not to its batch, its padding or its rank."""

import itertools
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from mg3d.params import Objective, Pretrain
from mg3d.training import feed as module
from mg3d.training.feed import Feed, corrupt

OBJECTIVE = Objective(mim_block_voxels=16)


def _corrupt(places: list[int], step: int, seed: int = 0) -> Any:
    keys = [(step, place) for place in places]
    return corrupt(ranks.reports(places), keys, seed, OBJECTIVE, 4, 20)  # type: ignore[arg-type]


def _same(one: torch.Tensor, other: torch.Tensor, padding: int) -> bool:
    """Equal up to ``padding`` beyond the narrower one's width."""
    width = min(one.shape[-1], other.shape[-1])
    beyond = torch.cat([one[..., width:].flatten(), other[..., width:].flatten()])
    return torch.equal(one[..., :width], other[..., :width]) and bool((beyond == padding).all())


def test_a_sample_is_masked_alike_in_any_batch() -> None:
    whole, half, alone = _corrupt([0, 1, 2, 3], 5), _corrupt([2, 3], 5), _corrupt([3], 5)
    assert whole.input_ids.shape[1] != alone.input_ids.shape[1]
    for other in (half, alone):
        assert _same(whole.masked_ids[-1], other.masked_ids[-1], 0)
        assert _same(whole.mlm_labels[-1], other.mlm_labels[-1], -100)
        assert torch.equal(whole.voxel_mask[-1], other.voxel_mask[-1])


def test_steps_samples_and_seeds_have_masks_of_their_own() -> None:
    first = _corrupt([1, 1 + 9], 5)
    assert not torch.equal(first.voxel_mask[0], first.voxel_mask[1])
    for other in (_corrupt([1], 6), _corrupt([1], 5, seed=1)):
        assert not torch.equal(first.voxel_mask[0], other.voxel_mask[0])
    labels = {tuple(_corrupt([2], step).mlm_labels[0].tolist()) for step in range(8)}
    assert len(labels) > 4


def test_inputs_and_labels_agree_in_every_epoch() -> None:
    """Spec/model invariant 7: labels are the original ids, all else is untouched."""
    for step in (1, 50, 100):
        inputs = _corrupt([0, 1, 2, 3], step)
        chosen = inputs.mlm_labels != -100
        assert torch.equal(inputs.mlm_labels[chosen], inputs.input_ids[chosen])
        assert torch.equal(inputs.masked_ids[~chosen], inputs.input_ids[~chosen])
        assert chosen.any(dim=1).all()
        assert not chosen[inputs.attention_mask == 0].any()
        assert torch.equal(inputs.masked_volume == 0, inputs.voxel_mask | (inputs.volume == 0))


def _feed(batch_size: int) -> tuple[Feed, Any]:
    params = Pretrain(num_steps=9, batch_size=batch_size)
    pairs = Subset(range(9), [0, 2, 3, 5, 6, 7, 8])  # type: ignore[arg-type]
    feed = Feed(ranks.reports, OBJECTIVE, params, 4, 20, torch.device("cpu"))  # type: ignore[arg-type]
    return feed, pairs


def test_ranks_share_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, pairs = _feed(batch_size=4)
    alone = list(itertools.islice(feed.training(pairs), 3))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module, "world_size", lambda: 2)
        parts.append(list(itertools.islice(feed.training(pairs), 3)))
    for (ids, whole), (ids0, part0), (ids1, part1) in zip(alone, *parts, strict=True):
        assert [*ids0, *ids1] == ids
        for name in ("volume", "voxel_mask", "masked_volume"):
            both = torch.cat([getattr(part0, name), getattr(part1, name)])
            assert torch.equal(both, getattr(whole, name))
    used = {study_id for ids, _ in alone for study_id in ids}
    assert used <= {f"study-{place}" for place in (0, 2, 3, 5, 6, 7, 8)}


def test_resuming_feeds_the_same_batches() -> None:
    feed, pairs = _feed(batch_size=4)
    whole = list(itertools.islice(feed.training(pairs), 6))
    later = list(itertools.islice(feed.training(pairs, start_step=4), 2))
    for (ids, inputs), (its_ids, its_inputs) in zip(whole[4:], later, strict=True):
        assert ids == its_ids
        for field in fields(inputs):
            one, other = getattr(inputs, field.name), getattr(its_inputs, field.name)
            assert (one is other is None) or torch.equal(one, other)


def test_validation_sees_every_study_once_with_the_same_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed, pairs = _feed(batch_size=4)
    first, second = list(feed.validation(pairs)), list(feed.validation(pairs))
    assert [len(inputs.volume) for inputs in first] == [4, 3]
    masks = torch.cat([inputs.voxel_mask for inputs in first])
    assert torch.equal(masks, torch.cat([inputs.voxel_mask for inputs in second]))
    shares = []
    for rank in (0, 1, 2):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(module, "world_size", lambda: 3)
        shares += [inputs.voxel_mask for inputs in feed.validation(pairs)]
    assert torch.equal(torch.cat(shares), masks)
