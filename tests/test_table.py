"""The results table: one row per task, nulls beside the value, null instead of 0."""

import json
from pathlib import Path

import pytest

from mg3d.table import table


def result(task: str, value: float | None, interval: list[float] | None) -> dict:
    return {
        "task": task,
        "mode": "frozen",
        "headline": {
            "name": "auroc",
            "value": value,
            "interval": interval,
            "null": {"chance": 0.5},
        },
        "ledger": {"used": 8, "quarantined": 1},
    }


def write(run: Path, task: str, content: dict) -> None:
    folder = run / "evaluate" / task / "frozen-seed0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))


def test_rows_hold_value_interval_and_nulls(tmp_path: Path) -> None:
    write(tmp_path, "b", result("b", 0.75, [0.6, 0.9]))
    write(tmp_path, "a", result("a", None, None))
    lines = table(tmp_path).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == (
        ["a", "frozen", "auroc", "null", "-", "chance 0.500", "8", "1"]
    )
    assert "0.750 | 0.600 to 0.900" in lines[3]
    assert (tmp_path / "results.md").read_text().splitlines() == lines


def test_no_results_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mg3d evaluate"):
        table(tmp_path)
