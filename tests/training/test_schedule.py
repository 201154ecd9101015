"""Learning rate and parameter groups (spec/model invariants 20 and 21)."""

import pytest
import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from mg3d.training.schedule import learning_rate_factor, parameter_groups, warmup_then_decay


def test_values_by_hand() -> None:
    factors = [learning_rate_factor(step, 100, 20) for step in (0, 10, 20, 60, 100, 101)]
    assert factors == [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    assert learning_rate_factor(0, 10, 0) == 1.0


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.2)


def test_agrees_with_transformers() -> None:
    ours, theirs = _optimizer(), _optimizer()
    schedule = warmup_then_decay(ours, num_steps=30, warmup_fraction=0.2)
    reference = get_linear_schedule_with_warmup(theirs, 6, 30)
    for _ in range(30):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-15)
        for each in (ours, theirs, schedule, reference):
            each.step()
    assert ours.param_groups[0]["lr"] == 0.0


def test_resuming_needs_only_the_step() -> None:
    whole = _optimizer()
    schedule = warmup_then_decay(whole, 30, 0.2)
    for _ in range(9):
        whole.step()
        schedule.step()
    resumed = _optimizer()
    warmup_then_decay(resumed, 30, 0.2, start_step=9)
    assert resumed.param_groups[0]["lr"] == whole.param_groups[0]["lr"] > 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.body = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 2))
        self.tied = self.body[0]
        self.head = nn.Linear(2, 1)


def test_groups_partition_the_trainable_parameters_once() -> None:
    net = Net()
    groups = parameter_groups(
        net,
        learning_rate=0.1,
        weight_decay=0.3,
        heads=[net.head],
        head_learning_rate_factor=5.0,
    )
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rates[id(net.head.weight)] == (0.5, 0.3)
    assert rates[id(net.head.bias)] == (0.5, 0.0)
    assert rates[id(net.body[0].weight)] == (0.1, 0.3)
    assert rates[id(net.body[1].weight)] == (0.1, 0.0)
    assert rates[id(net.relative_position_bias_table)] == (0.1, 0.0)
