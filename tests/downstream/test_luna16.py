from pathlib import Path

import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.luna16 import cases
from mg3d.finetuning.candidates import Scan
from mg3d.finetuning.task import evaluate, score, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import Luna16

from .layouts import write_luna16

TASK = DOWNSTREAM["luna16"]
PARAMS = Luna16(
    num_steps=40, batch_size=16, learning_rate=0.03, num_bootstrap=100, cube_voxels=32,
    cube_spacing_mm=2.0, num_negatives_per_scan=4, num_positive_views=3,
)  # fmt: skip


def test_cases_and_traps(tmp_path: Path) -> None:
    write_luna16(tmp_path)
    ledger = Ledger("luna16", "case")
    found = cases(tmp_path, ledger)
    reasons = sorted((e.reason, e.detail) for e in ledger.entries if e.reason)
    assert reasons == [
        (Reason.INVALID_LABEL, "class of a candidate is not 0 or 1"),
        (Reason.INVALID_LABEL, "in two subsets"),
        (Reason.UNREADABLE, "no volume for these candidates"),
    ]
    assert len(found) == 10  # neither the lung masks nor hidden twins
    assert all(isinstance(case, Scan) for case in found)
    split = split_cases(found, seed=0, validation_fraction=0.1, test_fraction=0.2)
    assert {name: len(part) for name, part in split.items()} == {
        "train": 7, "validation": 1, "test": 2,
    }  # fmt: skip
    first = next(case for case in found if isinstance(case, Scan) and case.excluded)
    assert first.excluded[0][3] == 10.0  # -1 in the file
    assert len(first.candidates) == 7
    assert len(first.lesions) == 1


def test_missing_tables_say_what_to_do(tmp_path: Path) -> None:
    write_luna16(tmp_path)
    (tmp_path / "candidates_V2.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(ValueError, match=r"unzip candidates_V2\.zip"):
        cases(tmp_path, Ledger("luna16", "case"))
    (tmp_path / "elsewhere.csv").rename(tmp_path / "candidates_V2.csv")
    (tmp_path / "evaluationScript/annotations/annotations_excluded.csv").unlink()
    with pytest.raises(ValueError, match=r"unzip evaluationScript\.zip"):
        cases(tmp_path, Ledger("luna16", "case"))
    with pytest.raises(ValueError, match="no subset0"):
        cases(tmp_path / "elsewhere", Ledger("luna16", "case"))


def test_end_to_end(tmp_path: Path, checkpoint: Path) -> None:
    write_luna16(tmp_path / "data", num_scans=20)
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert result["headline"]["name"] == "cpm"
    assert set(result["headline"]["null"]) == {"prevalence", "random_encoder"}
    assert result["metrics"]["auroc"]["value"] > 0.9  # bright balls in dark lungs
    assert result["headline"]["value"] > result["headline"]["null"]["prevalence"]
    assert result["counts"]["test_scans"] == 4
    assert result["ledger"]["reasons"] == {"invalid_label": 2, "unreadable": 2}  # one is cut short
    assert {path.stem for path in (out / "figures").iterdir()} == {
        "froc", "roc", "pr", "calibration",
    }  # fmt: skip
    assert score(TASK, out, PARAMS)["metrics"] == result["metrics"]


def test_fine_tuning_trains_on_cubes(tmp_path: Path, checkpoint: Path) -> None:
    write_luna16(tmp_path / "data")
    params = PARAMS.model_copy(update={"mode": "finetune", "num_steps": 2, "batch_size": 4})
    result = evaluate(
        TASK, checkpoint, tmp_path / "data", tmp_path / "out", params, lambda step, m: None
    )
    assert result["mode"] == "finetune"
    assert result["cases"] == {"train": 6, "validation": 1, "test": 2}  # one is cut short
