"""Chosen on validation, locked, opened once, counted."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.selection import ClosedSplit, Selection, choose, count_openings, selecting
from mg3d.finetuning.task import Case
from mg3d.params import Finetune

OF = {"task": "t", "mode": "frozen", "seed": 0}


def cases(name: str, count: int) -> list[Case]:
    return [Case(f"{name}{n}", f"{name}{n}", Path("x")) for n in range(count)]


class Line(nn.Module):
    """y = w · x with squared loss on pairs (x, y)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        x, y = batch.T
        return {"total": ((self.w * x - y) ** 2).mean()}


def test_the_test_split_is_closed_until_something_is_chosen(tmp_path: Path) -> None:
    selection = Selection(tmp_path / "selection.json", OF)
    split = ClosedSplit({"train": [1], "test": [2]}, selection)
    assert split["train"] == [1]
    assert [part for _, part in split.items()] == [[1], [2]]  # files may be read
    with pytest.raises(ValueError, match="stays closed until something is chosen"):
        split["test"]
    assert not selection.file.exists()
    with selecting(selection):
        choose(step=40, weights_sha256="ab")
    choose(step=0)  # outside an evaluation it is nobody's choice
    assert split["test"] == [2]
    record = json.loads(selection.file.read_text())
    assert record["chosen"] == {"step": 40, "weights_sha256": "ab"}
    assert record["sha256"] == selection.sha256
    with pytest.raises(ValueError, match="test split is open, and threshold would be chosen after"):
        selection.choose(threshold=0.5)


def test_openings_count_selections_not_looks(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "openings.jsonl"
    assert count_openings(file, "t", "test-a", "one") == 1
    assert count_openings(file, "t", "test-a", "one") == 1
    assert count_openings(file, "t", "test-a", "two") == 2
    assert count_openings(file, "t", "test-b", "two") == 1
    assert count_openings(file, "u", "test-a", "two") == 1
    assert count_openings(file, "t", "test-a", "one") == 2


def test_the_step_with_the_lowest_validation_loss_is_kept(tmp_path: Path) -> None:
    """Training pulls w to 1, validation is best at 0.05: an early step wins over the last."""
    model, seen = Line(), {}

    def make_batch(chosen: list[Case]) -> Tensor:
        return torch.tensor([[1.0, 1.0 if case.case_id[0] == "a" else 0.05] for case in chosen])

    def on_metrics(step: int, metrics: dict[str, float]) -> None:
        if "t/validation/total" in metrics:
            seen[step] = metrics["t/validation/total"]

    selection = Selection(tmp_path / "selection.json", OF)
    params = Finetune(num_steps=20, batch_size=2, learning_rate=0.05, weight_decay=0)
    with selecting(selection):
        fit_head(model, cases("a", 4), cases("b", 2), make_batch, params, on_metrics, "t")
        null = Line()
        fit_head(null, cases("a", 4), cases("b", 2), make_batch, params, on_metrics, "t/null")
    assert list(seen) == [4, 8, 12, 16, 20]
    best = min(seen, key=lambda step: seen[step])
    assert best < 20
    assert selection.chosen["step"] == best
    assert selection.chosen["validation_loss"] == pytest.approx((model.w.item() - 0.05) ** 2)
    assert selection.chosen["validation_loss"] == pytest.approx(seen[best])
    assert not model.training


def test_without_validation_cases_the_last_step_is_taken(tmp_path: Path) -> None:
    selection = Selection(tmp_path / "selection.json", OF)
    params = Finetune(num_steps=7, batch_size=2)
    with selecting(selection):
        fit_head(
            Line(), cases("a", 4), [], lambda c: torch.ones(len(c), 2), params,
            lambda step, metrics: None, "t",
        )  # fmt: skip
    assert selection.chosen["step"] == 7
    assert selection.chosen["validation_loss"] is None
    assert len(selection.chosen["weights_sha256"]) == 64
