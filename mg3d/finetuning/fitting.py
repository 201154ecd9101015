"""How a head is trained: AdamW and the schedule of pre-training, through the one loop.

Of a few steps, evenly spaced, the one with the lowest validation loss, or what the kind has in its
place, is kept; without validation cases it is the last. The choice enters the `Selection`.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mg3d.device import best as best_device
from mg3d.device import moved
from mg3d.finetuning.selection import choose
from mg3d.finetuning.task import Case, OnMetrics
from mg3d.params import Finetune
from mg3d.training.loop import fit
from mg3d.training.order import global_batches
from mg3d.training.schedule import parameter_groups, warmup_then_decay

WARMUP_FRACTION = 0.1
CLIP_NORM = 1.0
NUM_CANDIDATES = 5


@dataclass
class Best:
    """The weights with the lowest validation loss so far, and its step."""

    step: int = 0
    loss: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, step: int, loss: float, module: nn.Module) -> None:
        """Keep a copy of the weights if ``loss`` is lower; of equal ones the first stays."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.weights = {name: t.detach().clone() for name, t in module.state_dict().items()}


def fit_head(
    step_module: nn.Module,
    train: Sequence[Case],
    validation: Sequence[Case],
    make_batch: Callable[[Sequence[Case]], Any],
    params: Finetune,
    on_metrics: OnMetrics,
    prefix: str,
    criterion: Callable[[], float] | None = None,
) -> None:
    """Train what in ``step_module`` requires a gradient; leaves the best step in eval mode.

    ``step_module(make_batch(cases))`` returns losses by name with ``"total"``. ``prefix`` is the
    task's name for the model that is scored, and longer for a null baseline, whose step is chosen
    likewise but is no choice of the evaluation. ``criterion()``, of the validation cases by the
    module as it is, chooses instead of their mean loss; the lower, the better. A pre-trained
    ``step_module.encoder`` learns ``params.encoder_learning_rate_factor`` times as fast.
    The module moves to the best device and stays there, and so does every batch.
    Raises ValueError without training cases.
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
    device = best_device()
    step_module.to(device)

    def batch_of(cases: Sequence[Case]) -> Any:
        return moved(make_batch(cases), device)

    batches = (([case.case_id for case in cases], batch_of(cases)) for cases in chosen)
    optimizer = torch.optim.AdamW(optimizer_groups(step_module, params))

    best = Best()

    def validate(step: int) -> dict[str, float]:
        losses = _mean_losses(step_module, validation, batch_of, params.batch_size)
        if criterion is not None:
            losses["criterion"] = criterion()
        best.offer(step, losses.get("criterion", losses["total"]), step_module)
        return losses

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
        validate_every_steps=max(1, params.num_steps // NUM_CANDIDATES),
    )
    if best.weights:
        step_module.load_state_dict(best.weights)
    step_module.eval()
    if "/" not in prefix:
        by = "validation_loss" if criterion is None else "validation_criterion"
        choose(
            step=best.step or params.num_steps,
            weights_sha256=weights_sha256(step_module),
            **{by: best.loss if best.weights else None},
        )


def optimizer_groups(step_module: nn.Module, params: Finetune) -> list[dict[str, Any]]:
    """AdamW's groups: in mode ``finetune`` the encoder, if there is one, at a rate of its own."""
    encoder = getattr(step_module, "encoder", None)
    pretrained = [encoder] if params.mode == "finetune" and encoder is not None else []
    return parameter_groups(
        step_module,
        learning_rate=params.learning_rate,
        weight_decay=params.weight_decay,
        heads=pretrained,
        head_learning_rate_factor=params.encoder_learning_rate_factor,
    )


def weights_sha256(module: nn.Module) -> str:
    """Digest of names and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
