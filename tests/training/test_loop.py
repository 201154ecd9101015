"""The loop: what it reports, when it stops, and that ranks do not change the result."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from mg3d.training.loop import Progress, Stopped, fit
from mg3d.training.schedule import warmup_then_decay


class Square(nn.Module):
    """Loss (w - x)^2 of one weight, beginning at 0."""

    def __init__(self, transform: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.transform = transform

    def forward(self, x: float) -> dict[str, Tensor]:
        loss = self.transform(((self.weight - x) ** 2).sum())
        return {"square": loss, "total": loss}


def _fit(module: nn.Module, xs: list[float], **settings: Any) -> list[tuple[int, dict[str, float]]]:
    reported: list[tuple[int, dict[str, float]]] = []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.25)
    num_steps = settings.pop("num_steps", len(xs))
    fit(
        module,
        [([f"study-{i}"], x) for i, x in enumerate(xs)],
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        num_steps=num_steps,
        clip_norm=settings.pop("clip_norm", 100.0),
        on_metrics=lambda step, metrics: reported.append((step, metrics)),
        prefix="toy",
        **settings,
    )
    return reported


def test_steps_by_hand_and_means_over_the_window() -> None:
    module = Square()
    # w: 0 -> 0.5 -> 0.75 -> 0.875 with lr 1/4 and gradient 2(w - 1); losses 1, 1/4, 1/16
    reported = _fit(module, [1.0, 1.0, 1.0], report_every_steps=2)
    assert module.weight.item() == 0.875
    assert [step for step, _ in reported] == [2, 3]
    assert reported[0][1]["toy/train/square"] == (1 + 0.25) / 2
    assert reported[0][1]["toy/train/gradient_norm"] == (2 + 1) / 2
    assert reported[1][1]["toy/train/total"] == 0.0625
    assert reported[1][1]["toy/train/learning_rate"] == 0.25
    assert reported[1][1]["toy/train/samples_per_s"] > 0


def test_the_gradient_is_clipped() -> None:
    module = Square()
    _fit(module, [1.0], clip_norm=0.5)
    assert module.weight.item() == pytest.approx(0.125, abs=1e-6)


def test_validate_and_save_are_called_when_due_and_at_the_end() -> None:
    module = Square()
    calls: list[tuple[str, int, bool]] = []

    def validate(step: int) -> dict[str, float]:
        calls.append(("validate", step, module.training))
        return {"score": float(step)}

    reported = _fit(
        module,
        [1.0] * 5,
        validate=validate,
        validate_every_steps=2,
        save=lambda step: calls.append(("save", step, module.training)),
        save_every_steps=4,
    )
    assert calls == [
        ("validate", 2, False),
        ("validate", 4, False),
        ("save", 4, True),
        ("validate", 5, False),
        ("save", 5, True),
    ]
    scores = [(s, m["toy/validation/score"]) for s, m in reported if "toy/validation/score" in m]
    assert scores == [(2, 2.0), (4, 4.0), (5, 5.0)]
    # a window ends where a checkpoint is written, so a resumed run reports the same means
    assert [s for s, m in reported if "toy/train/total" in m] == [4, 5]


def test_a_start_step_continues_the_count() -> None:
    module = Square()
    assert [s for s, _ in _fit(module, [1.0], start_step=4, num_steps=5)] == [5]
    assert module.weight.item() == 0.5
    assert _fit(module, [], start_step=5, num_steps=5) == []


def test_told_to_stop_it_finishes_the_step_and_saves_it() -> None:
    module, told, saved = Square(), iter([False, True]), []
    with pytest.raises(Stopped, match="after step 2, which is saved: start again") as stopped:
        _fit(module, [1.0] * 4, stop=lambda: next(told), save=saved.append, save_every_steps=4)
    assert (stopped.value.step, saved, module.weight.item()) == (2, [2], 0.75)
    saved.clear()
    _fit(Square(), [1.0], stop=lambda: True, save=saved.append)  # the last step anyway
    assert saved == [1]


def test_too_few_batches_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="ended before step 2 of 3"):
        _fit(Square(), [1.0], num_steps=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(value: float) -> None:
    module = Square()
    with pytest.raises(FloatingPointError, match=r"step 2: square = (nan|inf).*study-1; nothing"):
        _fit(module, [1.0, value, 1.0])
    assert module.weight.item() == 0.5


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    module = Square(torch.sqrt)  # d sqrt(0) is inf, sqrt(0) is 0
    with pytest.raises(FloatingPointError, match=r"step 1: gradient = .*study-0"):
        _fit(module, [0.0])
    assert module.weight.item() == 0.0


def test_bfloat16_autocast_is_a_setting() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.dtype = self.layer(x).dtype
            return {"total": self.layer(x).float().sum()}

    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        module = Linear()
        _fit(module, [torch.ones(1, 2)], precision=precision)  # type: ignore[list-item]
        assert module.dtype == dtype
        assert module.layer.weight.dtype == torch.float32


def test_progress_says_step_losses_speed_and_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress("toy", num_steps=100, start_step=10, stream=stream)
    for step in range(11, 31):  # one step of four samples a second
        now[0] += 1
        progress.update(step, 4, {"mim": 0.25})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # every five seconds
    assert lines[-1] == "toy 26/100 mim 0.25 4 samples/s ETA 0:01:14"


def test_two_ranks_train_as_one_process(tmp_path: Path) -> None:
    alone = ranks.fits(0, tmp_path)
    both = ranks.run("fits", 2, tmp_path)
    for found in both:
        for key in alone.keys() - {"history"}:
            torch.testing.assert_close(found[key], alone[key], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both[0]["history"], alone["history"], rtol=1e-9, atol=1e-9)
    assert len(alone["history"]) == 3


def test_what_is_not_finite_on_one_rank_stops_all(tmp_path: Path) -> None:
    assert all(found["unchanged"].item() for found in ranks.run("stops", 2, tmp_path))


def test_the_schedule_moves_with_the_steps() -> None:
    module = Square()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    rates: list[float] = []
    fit(
        module,
        [(["s"], 0.0)] * 4,
        optimizer=optimizer,
        scheduler=warmup_then_decay(optimizer, 4, 0.5),
        num_steps=4,
        clip_norm=1.0,
        on_metrics=lambda _, metrics: rates.append(metrics["toy/train/learning_rate"]),
        prefix="toy",
        report_every_steps=1,
    )
    assert rates == [0.0, 0.5, 1.0, 0.5]
