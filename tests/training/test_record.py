"""Metrics in the run's folder survive crashes and resumes without doubles."""

from pathlib import Path

import numpy as np

from mg3d.training.record import Record, loss_history, read_metrics


def test_a_resume_forgets_what_it_repeats_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    passed_on: list[int] = []
    first = Record(path, 0, lambda step, _: passed_on.append(step))
    for step in (1, 2, 3):
        first(step, {"pretrain/train/mim": 1.0 / step})
    with path.open("a") as file:
        file.write('{"step": 4, "pretrain/tr')
    resumed = Record(path, 2, lambda step, _: passed_on.append(step))
    resumed(3, {"pretrain/train/mim": 9.0})
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["pretrain/train/mim"] == 9.0
    assert passed_on == [1, 2, 3, 3]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_history_has_the_losses_of_both_splits() -> None:
    lines = [
        {"step": 1, "pretrain/train/mim": 4.0, "pretrain/train/learning_rate": 0.1},
        {"step": 2, "pretrain/train/mim": 2.0, "pretrain/train/samples_per_s": 7.0},
        {"step": 2, "pretrain/validation/mim": 3.0, "pretrain/validation/recall_at_1": 0.5},
        {"step": 2, "other/train/mim": 5.0},
    ]
    history = loss_history(lines, "pretrain")
    assert set(history) == {"mim"}
    np.testing.assert_array_equal(history["mim"]["train"], [[1, 4], [2, 2]])
    np.testing.assert_array_equal(history["mim"]["validation"], [[2, 3]])
