"""The training loop, the only one: pre-training and every downstream task call :func:`fit`.

It knows neither models nor losses nor loggers. It is given a module that turns a batch into named
losses, an iterator of batches, and functions to call when something is worth saying or keeping.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from mg3d.training.distributed import gather, is_main, rank, world_size
from mg3d.training.parallel import clip_gradients

OnMetrics = Callable[[int, dict[str, float]], None]


class Stopped(Exception):
    """Training ended early because it was told to; ``step`` is the last one, and it is saved."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}, which is saved: start again to go on")


def fit(
    step_module: nn.Module,
    batches: Iterable[tuple[Sequence[str], Any]],
    *,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    num_steps: int,
    clip_norm: float,
    on_metrics: OnMetrics,
    prefix: str,
    validate: Callable[[int], dict[str, float]] | None = None,
    validate_every_steps: int = 0,
    save: Callable[[int], None] | None = None,
    save_every_steps: int = 0,
    stop: Callable[[], bool] = lambda: False,
    start_step: int = 0,
    report_every_steps: int = 10,
    precision: str = "float32",
) -> None:
    """Train from ``start_step`` to ``num_steps`` updates.

    ``batches`` yields (study or case ids, inputs) of this rank, the first for step
    ``start_step + 1``; ``step_module(inputs)`` returns scalar losses by name, one of them
    ``"total"``, which is minimised. Every ``report_every_steps`` steps ``on_metrics`` gets their
    means over steps and ranks as ``{prefix}/train/{name}``; what ``validate`` returns becomes
    ``{prefix}/validation/{name}``. ``validate`` and ``save`` are called on every rank, every so
    many steps (0: only) and at the end; ``on_metrics`` and progress are rank 0's.

    ``stop`` is asked in every step on every rank. If one says yes, all finish this step, save it
    and raise Stopped.

    Raises FloatingPointError, before anything is updated and on all ranks alike, when a loss or the
    gradient is not finite; it names the terms and the ids of the batch.
    """
    device = next(step_module.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    progress = Progress(prefix, num_steps, start_step)
    iterator = iter(batches)
    window: list[dict[str, float]] = []
    step_module.train()

    for step in range(start_step + 1, num_steps + 1):
        batch = next(iterator, None)
        assert batch is not None, f"{prefix}: the batches ended before step {step} of {num_steps}"
        ids, inputs = batch
        with autocast:
            terms = step_module(inputs)
        losses, stopping = _over_ranks(terms, stop(), ids, step)
        optimizer.zero_grad()
        terms["total"].backward()
        norm = clip_gradients(step_module, clip_norm)
        _check_finite({"gradient": norm}, ids, step)
        learning_rate = float(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()

        window.append({**losses, "gradient_norm": norm, "learning_rate": learning_rate})
        progress.update(step, len(ids) * world_size(), losses)
        saving = save is not None and (stopping or _is_due(step, save_every_steps, num_steps))
        if saving or _is_due(step, report_every_steps, num_steps):
            means = {f"{prefix}/train/{name}": _mean(window, name) for name in window[0]}
            window = []
            if is_main():
                on_metrics(step, {**means, f"{prefix}/train/samples_per_s": progress.samples_per_s})
        if validate is not None and _is_due(step, validate_every_steps, num_steps):
            step_module.eval()
            scores = validate(step)
            step_module.train()
            if is_main():
                on_metrics(step, {f"{prefix}/validation/{name}": v for name, v in scores.items()})
        if saving and save is not None:
            save(step)
        if stopping and step < num_steps:
            raise Stopped(step)


def _is_due(step: int, every_steps: int, num_steps: int) -> bool:
    return step == num_steps or (every_steps > 0 and step % every_steps == 0)


def _mean(window: Sequence[Mapping[str, float]], name: str) -> float:
    return math.fsum(values[name] for values in window) / len(window)


def _over_ranks(
    terms: Mapping[str, Tensor], stop: bool, ids: Sequence[str], step: int
) -> tuple[dict[str, float], bool]:
    """Mean losses by name and whether any rank wants to stop, the same on every rank.

    Raises on all ranks if a loss is not finite on any.
    """
    values = [term.detach().double() for term in terms.values()]
    values.append(values[0].new_tensor(float(stop)))
    table = gather(torch.stack(values)[None]).cpu()  # [ranks, terms + 1]
    losses, stops = table[:, :-1], table[:, -1]
    rows = [dict(zip(terms, row, strict=True)) for row in losses.tolist()]
    _check_finite(rows[rank()], ids, step)
    for other, row in enumerate(rows):
        _check_finite(row, [f"the batch of rank {other}"], step)
    return dict(zip(terms, losses.mean(0).tolist(), strict=True)), bool(stops.any())


def _check_finite(values: Mapping[str, float], ids: Sequence[str], step: int) -> None:
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"step {step}: {', '.join(bad)} for {', '.join(ids)}; nothing was updated. "
            "Look at these inputs, or lower the learning_rate; the last checkpoint is intact"
        )


class Progress:
    """Says how far a long loop is: in place on a terminal, a line every few seconds in a log."""

    def __init__(
        self, label: str, num_steps: int, start_step: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label, self.num_steps, self.start_step = label, num_steps, start_step
        self.stream = stream or sys.stderr
        self.every_s = 0.2 if self.stream.isatty() else 5.0
        self.samples = 0
        self.began = time.monotonic()
        self.said = -math.inf

    @property
    def samples_per_s(self) -> float:
        """Mean since the loop began."""
        return self.samples / max(1e-9, time.monotonic() - self.began)

    def update(self, step: int, num_samples: int, values: Mapping[str, float]) -> None:
        """Count ``num_samples`` more; print if it is time. Rank 0 only."""
        self.samples += num_samples
        now = time.monotonic()
        if not is_main() or (now - self.said < self.every_s and step < self.num_steps):
            return
        self.said = now
        seconds_a_step = (now - self.began) / max(1, step - self.start_step)
        eta = timedelta(seconds=round((self.num_steps - step) * seconds_a_step))
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        line = (
            f"{self.label} {step}/{self.num_steps} {shown} "
            f"{self.samples_per_s:.3g} samples/s ETA {eta}"
        )
        if self.stream.isatty():
            line = f"\r\033[K{line}" + ("\n" if step == self.num_steps else "")
            print(line, end="", file=self.stream, flush=True)
        else:
            print(line, file=self.stream, flush=True)
