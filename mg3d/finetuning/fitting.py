"""How a head is trained: AdamW and the schedule of pre-training, through the one loop.

Every step is fixed beforehand and the last one is used: nothing is selected, so validation and test
stay unseen. Validation losses are reported only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mg3d.finetuning.task import Case, OnMetrics
from mg3d.params import Finetune
from mg3d.training.loop import fit
from mg3d.training.order import global_batches
from mg3d.training.schedule import parameter_groups, warmup_then_decay

WARMUP_FRACTION = 0.1
CLIP_NORM = 1.0


def fit_head(
    step_module: nn.Module,
    train: Sequence[Case],
    validation: Sequence[Case],
    make_batch: Callable[[Sequence[Case]], Any],
    params: Finetune,
    on_metrics: OnMetrics,
    prefix: str,
) -> None:
    """Train what in ``step_module`` requires a gradient; leaves it in eval mode.

    ``step_module(make_batch(cases))`` returns losses by name with ``"total"``. Raises ValueError
    without training cases.
    """
    if not train:
        raise ValueError(
            f"{prefix}: no training cases; lower test_fraction, or use a mode that trains nothing"
        )
    batch_size = min(params.batch_size, len(train))
    chosen = (
        [train[index] for index in indices]
        for indices in global_batches(params.seed, len(train), batch_size)
    )
    batches = (([case.case_id for case in cases], make_batch(cases)) for cases in chosen)
    groups = parameter_groups(
        step_module, learning_rate=params.learning_rate, weight_decay=params.weight_decay
    )
    optimizer = torch.optim.AdamW(groups)

    def validate(step: int) -> dict[str, float]:
        return _mean_losses(step_module, validation, make_batch, params.batch_size)

    fit(
        step_module,
        batches,
        optimizer=optimizer,
        scheduler=warmup_then_decay(optimizer, params.num_steps, WARMUP_FRACTION),
        num_steps=params.num_steps,
        clip_norm=CLIP_NORM,
        on_metrics=on_metrics,
        prefix=prefix,
        validate=validate if validation else None,
    )
    step_module.eval()


@torch.no_grad()
def _mean_losses(
    step_module: nn.Module,
    cases: Sequence[Case],
    make_batch: Callable[[Sequence[Case]], Any],
    batch_size: int,
) -> dict[str, float]:
    """Mean losses over cases, each batch weighted by its size."""
    sums: dict[str, float] = {}
    for start in range(0, len(cases), batch_size):
        chosen = cases[start : start + batch_size]
        for name, loss in step_module(make_batch(chosen)).items():
            sums[name] = sums.get(name, 0.0) + float(loss) * len(chosen)
    return {name: total / len(cases) for name, total in sums.items()}
