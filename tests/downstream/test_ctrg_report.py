import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.ctrg_report import cases, validation_texts
from mg3d.finetuning.leaks import refuse_leaks
from mg3d.finetuning.task import Case, evaluate, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtrgReport

from .layouts import FINDINGS, write_ctrg, write_ctrg_reference

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


def as_published(data: Path) -> list[Case]:
    """The reference's file taken at its word: a case per entry, in the part that it names."""
    parts = json.loads((data / "chest_ctrg_nitfy_ori_split.json").read_text())
    names = {"train": "train", "val": "validation", "test": "test"}
    return [
        Case(
            f"{part}/{entry['id']}",
            entry["id"],
            data / entry["image_path"],
            text=entry["report"],
            split=names[part],
        )
        for part, entries in parts.items()
        for entry in entries
    ]


FRACTIONS = {"seed": 0, "validation_fraction": 0.1, "test_fraction": 0.2}


def test_the_published_split_is_refused_and_ours_is_not(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path)
    with pytest.raises(ValueError, match=r"910.nii.gz is in validation and in test"):
        split_cases(as_published(tmp_path), **FRACTIONS)  # type: ignore[arg-type]
    ledger = Ledger("ctrg_report", "case")
    split = split_cases(cases(tmp_path, ledger), **FRACTIONS)  # type: ignore[arg-type]
    assert {part: len(found) for part, found in split.items()} == {
        "train": 18, "validation": 2, "test": 1,
    }  # fmt: skip
    assert [e.detail for e in ledger.entries] == ["repeats another entry"]


def test_the_published_split_and_copies_of_a_study_fail_the_guard(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path)
    found = as_published(tmp_path)
    split = {
        part: [c for c in found if c.split == part] for part in ("train", "validation", "test")
    }
    with pytest.raises(ValueError, match=r"val/910.nii.gz .* and test/910.nii.gz .* one pat"):
        refuse_leaks("ctrg_report", split, texts=True)
    split["validation"] = []
    assert refuse_leaks("ctrg_report", split, texts=True)["shared_texts"] == 0
    report = " ".join(f"{finding} On the left {finding.lower()}" for finding in FINDINGS)
    split["train"][3] = replace(split["train"][3], text=report)
    split["test"][0] = replace(split["test"][0], text=report)  # one study under two numbers
    with pytest.raises(ValueError, match=r"train/3.nii.gz .* and test/910.nii.gz .* word for word"):
        refuse_leaks("ctrg_report", split, texts=True)


def test_no_text_of_test_is_trained_on(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path)
    file = tmp_path / "chest_ctrg_nitfy_ori_split.json"
    parts = json.loads(file.read_text())
    parts["train"][3]["report"] = parts["test"][0]["report"].replace(" ", "  ")
    file.write_text(json.dumps(parts))
    ledger = Ledger("ctrg_report", "case")
    found = cases(tmp_path, ledger)
    texts = {part: {c.text for c in found if c.split == part} for part in ("train", "test")}
    assert not texts["train"] & texts["test"]
    assert "word for word a report of test" in [e.detail for e in ledger.entries]


def test_validation_is_a_fixed_tenth_and_keeps_copies_together() -> None:
    texts = [f"Report {number}." for number in range(1444)]
    chosen = validation_texts(texts)
    assert len(chosen) == 144
    assert validation_texts(texts[::-1]) == chosen
    twins = [*texts, *sorted(chosen)[:3]]
    assert len([text for text in twins if text in validation_texts(twins)]) >= 144
    assert min(chosen) == "Report 10."  # written down: it may not move


def test_reference_list_with_a_validation_set_of_its_own(tmp_path: Path) -> None:
    write_ctrg_reference(tmp_path, val_equals_test=False)
    found = cases(tmp_path, Ledger("ctrg_report", "case"))
    assert Counter(case.split for case in found) == {"train": 20, "validation": 1, "test": 1}


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
        "shuffled_images", "random_encoder",
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
    chosen = json.loads((out / "selection.json").read_text())["chosen"]
    assert {"step", "diagnosis_penalty", "diagnosis_threshold"} <= set(chosen)
    assert [path.stem for path in (out / "figures").iterdir()] == ["reports"]
