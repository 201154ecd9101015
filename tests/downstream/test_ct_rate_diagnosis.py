from pathlib import Path

import pandas as pd
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.ct_rate_diagnosis import FINDINGS, cases
from mg3d.finetuning import classification
from mg3d.finetuning.task import evaluate, score, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtRateDiagnosis

from .layouts import write_ct_rate

TASK = DOWNSTREAM["ct_rate_diagnosis"]
PARAMS = CtRateDiagnosis(
    num_steps=10, batch_size=8, learning_rate=0.03, num_bootstrap=100, validation_fraction=0.4
)


def test_cases_and_traps(tmp_path: Path) -> None:
    write_ct_rate(tmp_path, label_names=FINDINGS)
    labels = tmp_path / "dataset" / "multi_abnormality_labels" / "valid_predicted_labels.csv"
    table = pd.read_csv(labels).astype(object)
    table.loc[table["VolumeName"].str.startswith("valid_91"), "Emphysema"] = 2
    table = table[~table["VolumeName"].str.startswith("valid_92")]
    table.loc[len(table) + 9] = table.iloc[0]
    table.iloc[-1, 0] = "valid_251_a_2.nii.gz"
    table.to_csv(labels, index=False)
    folder = tmp_path / "dataset" / "valid_fixed"
    known_bad = folder / "valid_251" / "valid_251_a" / "valid_251_a_2.nii.gz"
    known_bad.parent.mkdir(parents=True)
    known_bad.write_bytes((folder / "valid_1/valid_1_a/valid_1_a_1.nii.gz").read_bytes())
    ledger = Ledger("ct_rate_diagnosis", "case")
    found = cases(tmp_path, ledger)
    assert sorted((e.reason, e.detail) for e in ledger.entries if e.reason) == [
        (Reason.INVALID_LABEL, "labels must be 0 or 1"),
        (Reason.INVALID_LABEL, "no row of labels"),
        (Reason.KNOWN_BAD, ""),
        (Reason.NOT_CHOSEN, "listed as no chest"),
    ]
    assert all(list(case.labels) == list(FINDINGS) for case in found)
    split = split_cases(found, seed=0, validation_fraction=0.4, test_fraction=0.2)
    assert {name: len(part) for name, part in split.items()} == {
        "train": 4, "validation": 2, "test": 8,
    }  # fmt: skip
    train = {case.patient_id for case in split["train"]}
    assert not train & {case.patient_id for case in split["validation"]}


def test_other_labels_are_refused(tmp_path: Path) -> None:
    write_ct_rate(tmp_path)
    with pytest.raises(ValueError, match=r"differ from CT-RATE's 18 in .*'Atelectasis'"):
        cases(tmp_path, Ledger("ct_rate_diagnosis", "case"))


def draw_little(predictions: Path, params: CtRateDiagnosis) -> dict:
    """55 pictures take longer than all the rest."""
    return {}


@pytest.mark.parametrize("mode", ["frozen", "zero_shot", "prompt_tuned"])
def test_end_to_end(
    tmp_path: Path, checkpoint: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "draw", draw_little)
    write_ct_rate(tmp_path / "data", num_train=10, num_valid=12, label_names=FINDINGS)
    params = PARAMS.model_copy(update={"mode": mode})
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, params, lambda step, m: None)
    assert result["headline"]["name"] == "mean_auroc"
    assert result["headline"]["interval"] is not None
    assert result["nulls"]["prevalence"]["mean_auroc"]["value"] == 0.5
    assert set(result["headline"]["null"]) == {"prevalence", "random_encoder"}
    assert result["counts"]["test_cases"] - result["counts"]["test_scans"] == 2
    assert result["metrics"]["all_volumes_mean_auroc"]["value"] is not None
    assert result["cases"]["train"] == (0 if mode == "zero_shot" else 6)
    assert score(TASK, out, params)["metrics"] == result["metrics"]
    assert (out / "predictions" / "model_validation.csv").exists()
    thresholds = pd.read_csv(out / "predictions" / "thresholds.csv")
    assert len(thresholds) == 3 * len(FINDINGS)


def test_zero_shot_uses_no_label(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels for training and testing, the same predictions."""
    monkeypatch.setattr(classification, "draw", draw_little)
    probabilities = []
    for flipped in (False, True):
        data = tmp_path / f"data{flipped}"
        write_ct_rate(data, num_train=4, num_valid=6, label_names=FINDINGS)
        for path in (data / "dataset" / "multi_abnormality_labels").glob("*.csv"):
            table = pd.read_csv(path)
            if flipped:
                table[list(FINDINGS)] = 1 - table[list(FINDINGS)]
            table.to_csv(path, index=False)
        params = PARAMS.model_copy(update={"mode": "zero_shot"})
        out = tmp_path / f"out{flipped}"
        evaluate(TASK, checkpoint, data, out, params, lambda step, m: None)
        table = pd.read_csv(out / "predictions" / "model.csv")
        probabilities.append(table[[f"p_{name}" for name in FINDINGS]].to_numpy())
    assert (probabilities[0] == probabilities[1]).all()
    assert probabilities[0].std() > 0
