import json
from pathlib import Path

import pandas as pd
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.stoic2021 import cases
from mg3d.finetuning.classification import choose_thresholds
from mg3d.finetuning.leaks import refuse_leaks
from mg3d.finetuning.task import evaluate, score
from mg3d.ledger import Ledger, Reason
from mg3d.params import Stoic2021

from .layouts import write_stoic

TASK = DOWNSTREAM["stoic2021"]
PARAMS = Stoic2021(num_steps=2, batch_size=4, test_fraction=0.5, num_bootstrap=100)


def test_cases_and_bad_rows(tmp_path: Path) -> None:
    write_stoic(tmp_path)
    ledger = Ledger("stoic2021", "case")
    found = cases(tmp_path, ledger)
    reasons = sorted((e.reason, e.detail) for e in ledger.entries if e.reason)
    assert reasons == [
        (Reason.INVALID_LABEL, "labels must be 0 or 1"),
        (Reason.INVALID_LABEL, "severe without COVID"),
        (Reason.ORPHAN_IMAGE, "no row in reference.csv"),
        (Reason.UNREADABLE, "no volume for this row"),
    ]
    assert len(found) == 9  # eight, and one whose file is broken
    labels = sorted((str(case.labels["covid"]), str(case.labels["severe"])) for case in found)
    assert labels == [("0", "None")] * 4 + [("1", "0")] * 2 + [("1", "1")] * 3
    assert not any("107" in case.case_id + case.patient_id for case in found)


def test_the_published_split_fails_the_guard(tmp_path: Path) -> None:
    """Its validation file is its training file, and what is validated is what is reported."""
    write_stoic(tmp_path)
    found = cases(tmp_path, Ledger("stoic2021", "case"))
    split = {"train": found, "validation": found, "test": []}
    with pytest.raises(ValueError, match=r"are of one patient, patient-\w+: a patient may be in"):
        refuse_leaks("stoic2021", split, texts=False)


def test_missing_table_and_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ships it beside data/mha"):
        cases(tmp_path, Ledger("stoic2021", "case"))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "reference.csv").write_text("PatientID,probCOVID\n1,0\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['probSevere'\]"):
        cases(tmp_path, Ledger("stoic2021", "case"))


def test_end_to_end_and_again_without_work(tmp_path: Path, checkpoint: Path) -> None:
    write_stoic(tmp_path / "data", num_cases=24)
    out = tmp_path / "out"
    seen: list[str] = []
    result = evaluate(
        TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: seen.extend(m)
    )
    assert json.loads((out / "result.json").read_text()) == result
    assert "stoic2021/train/total" in seen
    assert result["ledger"]["quarantined"] == 5
    assert result["ledger"]["reasons"]["unreadable"] == 2
    assert sum(result["cases"].values()) == 24
    assert set(result["headline"]["null"]) == {"prevalence", "random_encoder"}
    assert result["nulls"]["prevalence"]["covid_auroc"]["value"] in (0.5, None)
    # Two severe cases in all are too few: the next metric heads, and the reason is there.
    assert result["headline"]["name"] == "covid_auroc"
    assert (result["split"], result["fold"]) == ("rule", None)
    assert result["leak_guard"] == {"images": 25, "shared_texts": 0}
    assert result["metrics"]["severe_auroc"]["value"] is None
    assert "3 of each are needed" in result["unavailable"]["severe_auroc"]
    assert sorted(p.stem for p in (out / "figures").iterdir()) == [
        f"{kind}_{label}"
        for kind in ("calibration", "decision_curve", "pr", "roc")
        for label in ("covid", "severe")
    ]  # fmt: skip

    record = json.loads((out / "selection.json").read_text())
    assert record["sha256"] == result["selection"]["sha256"]
    assert record["chosen"]["step"] in (1, 2)
    assert (out / "selection.json").stat().st_mtime <= min(
        (out / "predictions" / f"{system}.csv").stat().st_mtime
        for system in ("model", "prevalence", "random_encoder")
    )
    assert set(record["chosen"]["thresholds"]) == {"covid", "severe"}  # chosen before, too
    assert result["test_openings"] == 1
    assert result["encoder_coverage"]["percent"] == 100.0
    assert result["peak_memory_mb"] > 50

    assert_fitted_gives_the_predictions(checkpoint, tmp_path / "data", out, tmp_path / "model")

    before = (out / "predictions" / "model.csv").stat().st_mtime_ns
    again = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert again == result
    assert (out / "predictions" / "model.csv").stat().st_mtime_ns == before
    reference = tmp_path / "data" / "metadata" / "reference.csv"
    reference.write_text(reference.read_text() + "\n")
    changed = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert changed["inputs"]["data"] != result["inputs"]["data"]
    assert changed["metrics"] == result["metrics"]
    assert changed["test_openings"] == 1  # the same selection again
    other = PARAMS.model_copy(update={"seed": 1, "mode": "scratch", "num_steps": 1})
    scratch = evaluate(TASK, checkpoint, tmp_path / "data", out, other, lambda step, m: None)
    assert scratch["test_openings"] == 2
    assert scratch["test_sha256"] == result["test_sha256"]  # the seed trains, it does not split
    assert scratch["encoder_coverage"] is None


def test_scores_come_from_the_files_alone(tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    table = pd.DataFrame(
        {
            "case_id": list("abcdefgh"),
            "patient_id": list("abcdefgh"),
            "primary": True,
            "covid": [0, 0, 0, 1, 1, 1, 1, 1],
            "severe": [None, None, None, 0, 0, 1, 1, 1],
            "p_covid": [0.1, 0.2, 0.8, 0.9, 0.7, 0.85, 0.9, 0.9],
            "p_severe": [0.9] * 3 + [0.3, 0.6, 0.5, 0.8, 0.9],
        }
    )
    thresholds: list[dict] = []
    for system in ("model", "prevalence", "random_encoder"):
        table.to_csv(predictions / f"{system}.csv", index=False)
        thresholds += choose_thresholds(system, table)
    pd.DataFrame(thresholds).to_csv(predictions / "thresholds.csv", index=False)
    scored = score(TASK, tmp_path, PARAMS)
    # Three negatives against five positives: all right but the pair (0.8, 0.7).
    assert scored["metrics"]["covid_auroc"]["value"] == pytest.approx(14 / 15)
    # Severity among positives only; the negatives' 0.9 does not count. Two mild cases: too few.
    assert scored["metrics"]["severe_auroc"]["value"] is None
    with pytest.raises(ValueError, match="no predictions"):
        score(TASK, tmp_path / "elsewhere", PARAMS)


def assert_fitted_gives_the_predictions(
    checkpoint: Path, data: Path, cell: Path, folder: Path
) -> None:
    """What the cell kept is what predicted its test cases, and says which cases those were."""
    from mg3d.finetuning.images import load_image
    from mg3d.inference.model import load_task_model, write_task_model
    from mg3d.inference.study import Study

    write_task_model(checkpoint, cell, folder, None)
    model = load_task_model(folder)
    predicted = pd.read_csv(cell / "predictions" / "model.csv").set_index("case_id")
    of_case = {case.case_id: case for case in cases(data, Ledger("stoic2021", "case"))}
    for case_id in predicted.index[:2]:
        study = Study(case_id, *load_image(of_case[case_id]))
        answer = model.answer(study)
        for finding in answer.findings:
            expected = predicted.loc[case_id, f"p_{finding.name}"]
            assert finding.probability == pytest.approx(expected, abs=1e-5)
    table = pd.read_csv(cell / "cases.csv")
    assert sorted(table.loc[table["split"] == "test", "case_id"]) == sorted(predicted.index)
