import json
from pathlib import Path

import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.ctrg_report import cases, disjoint
from mg3d.finetuning.task import evaluate
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtrgReport

from .layouts import write_ctrg, write_ctrg_reference

TASK = DOWNSTREAM["ctrg_report"]


def test_official_list(tmp_path: Path) -> None:
    write_ctrg(tmp_path)
    ledger = Ledger("ctrg_report", "case")
    found = cases(tmp_path, ledger)
    assert sorted(str(e.reason) for e in ledger.entries) == sorted(
        [Reason.NOT_IN_SPLIT, Reason.REPORT_WITHOUT_STUDY, Reason.REPORT_NOT_GIVEN]
    )
    assert len(found) == 10
    assert found[0].text == found[1].text
    assert found[0].patient_id == found[1].patient_id  # one text may not be on both sides
    assert len({case.patient_id for case in found}) == 9


def test_reference_list_has_its_test_set_as_validation(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path)
    parts = json.loads((tmp_path / "chest_ctrg_nitfy_ori_split.json").read_text())
    assert not disjoint(parts)
    ledger = Ledger("ctrg_report", "case")
    found = cases(tmp_path, ledger)
    assert sorted(str(case.split) for case in found) == ["test"] + ["train"] * 4
    assert [e.reason for e in ledger.entries] == [Reason.NOT_IN_SPLIT]


def test_reference_list_with_a_validation_set_of_its_own(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path, val_equals_test=False)
    found = cases(tmp_path, Ledger("ctrg_report", "case"))
    assert sorted(str(case.split) for case in found) == ["test"] + ["train"] * 4 + ["validation"]


def test_wrong_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ships one of them"):
        cases(tmp_path, Ledger("ctrg_report", "case"))


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_end_to_end(tmp_path: Path, checkpoint: Path, mode: str) -> None:
    write_ctrg(tmp_path / "data")
    params = CtrgReport(
        mode=mode, num_steps=2, batch_size=4, num_layers=1, num_heads=2, width=16, num_beams=2,
        max_new_tokens=24, vocabulary_size=300, num_bootstrap=100, test_fraction=0.3,
    )  # fmt: skip
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, params, lambda step, m: None)
    assert json.loads((out / "result.json").read_text()) == result
    assert set(result["headline"]["null"]) == {
        "most_frequent_report", "fixed_report", "text_only", "nearest_training_report",
        "shuffled_images",
    }  # fmt: skip
    assert result["metrics"]["meteor"]["value"] is None
    assert "Java" in result["unavailable"]["meteor"]
    assert result["counts"]["test_reports_also_in_train"] == 0

    def lines(system: str) -> list[dict[str, str]]:
        return [
            json.loads(line) for line in (predictions / f"{system}.jsonl").read_text().splitlines()
        ]

    predictions = out / "predictions"
    rows = lines("model")
    assert len(rows) == result["cases"]["test"] >= 3
    listed = json.loads((tmp_path / "data" / "chest_ctrg_jpg.json").read_text())
    assert {row["reference"] for row in rows} <= {entry["report"] for entry in listed}
    for constant in ("most_frequent_report", "fixed_report", "text_only"):
        assert len({row["hypothesis"] for row in lines(constant)}) == 1  # no image, no difference
    assert [row["case_id"] for row in lines("scored")] == [row["case_id"] for row in rows]
    assert [path.stem for path in (out / "figures").iterdir()] == ["reports"]
