"""What is trained how fast: parameter groups and the learning rate over time (spec/model 5)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def learning_rate_factor(step: int, num_steps: int, num_warmup_steps: int) -> float:
    """Factor of the learning rate after ``step`` updates: 0 to 1 in the warm-up, then 1 to 0."""
    if step < num_warmup_steps:
        return step / num_warmup_steps
    return max(0.0, (num_steps - step) / max(1, num_steps - num_warmup_steps))


def warmup_then_decay(
    optimizer: torch.optim.Optimizer, num_steps: int, warmup_fraction: float, start_step: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up and linear decay to 0 at ``num_steps``; a pure function of the step.

    ``start_step`` is the number of updates already made, so resuming needs no scheduler state.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    num_warmup_steps = round(num_steps * warmup_fraction)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, num_steps, num_warmup_steps),
        last_epoch=start_step - 1,
    )


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weights are decayed; biases, norms and Swin's relative position biases are not."""
    return parameter.ndim > 1 and not name.endswith("relative_position_bias_table")


def parameter_groups(
    module: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    heads: Iterable[nn.Module] = (),
    head_learning_rate_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Partition the trainable parameters by (inside ``heads`` or not) x (decayed or not).

    Parameters of ``heads`` (modules inside ``module``) learn ``head_learning_rate_factor`` times
    faster. Returns AdamW groups, empty ones left out; each trainable parameter is in exactly one.
    """
    in_heads = {id(parameter) for head in heads for parameter in head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():  # a shared parameter is named once
        if parameter.requires_grad:
            key = (id(parameter) in in_heads, is_decayed(name, parameter))
            groups.setdefault(key, []).append(parameter)
    assert groups, "nothing to train: no parameter requires a gradient"
    return [
        {
            "params": parameters,
            "lr": learning_rate * (head_learning_rate_factor if is_head else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (is_head, decayed), parameters in groups.items()
    ]
