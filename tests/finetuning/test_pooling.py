"""Folds become one set of predictions; nothing of a fold alone is taken for all."""

import csv
import json
from pathlib import Path

import pytest

from mg3d.finetuning.pooling import pool


def write(folder: Path, case: str, threshold: str) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model.csv").write_text(f'case_id,note,p\n{case},"a, b",0.10\n')
    (folder / "model_validation.csv").write_text("case_id,p\nv,0.5\n")
    (folder / "model.jsonl").write_text(json.dumps({"case_id": case, "text": "ä"}) + "\n")
    (folder / "facts.json").write_text("{}")
    (folder / "model" / f"{case}.nii.gz").write_bytes(case.encode())
    (folder / "thresholds.csv").write_text(
        f"label,threshold,reason\ncovid,{threshold},\nsevere,0.5,\n"
    )
    return folder


def test_cases_follow_one_another_and_a_folds_own_has_no_value(tmp_path: Path) -> None:
    folds = [write(tmp_path / f"{n}", f"case-{n}", f"0.{n}") for n in (1, 2, 3)]
    pool(folds, tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "model.csv").read_text().splitlines()[1:] == [
        f'case-{n},"a, b",0.10' for n in (1, 2, 3)
    ]
    lines = (out / "model.jsonl").read_text().splitlines()
    assert [json.loads(line)["case_id"] for line in lines] == ["case-1", "case-2", "case-3"]
    assert sorted(path.read_bytes() for path in (out / "model").iterdir()) == [
        b"case-1", b"case-2", b"case-3",
    ]  # fmt: skip
    assert not (out / "model_validation.csv").exists()
    (covid, severe) = csv.DictReader((out / "thresholds.csv").read_text().splitlines())
    assert (covid["threshold"], covid["reason"]) == ("", "each fold has its own")
    assert (severe["threshold"], severe["reason"]) == ("0.5", "")


def test_a_case_in_two_folds_is_refused(tmp_path: Path) -> None:
    folds = [write(tmp_path / f"{n}", "case-1", "0.5") for n in (1, 2)]
    with pytest.raises(ValueError, match=r"case-1.* is in model.* of two folds: their test sets"):
        pool(folds, tmp_path / "out")
