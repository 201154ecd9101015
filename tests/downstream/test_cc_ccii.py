import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.cc_ccii import cases
from mg3d.finetuning.task import evaluate, score, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import CcCcii

from .layouts import write_cc_ccii

TASK = DOWNSTREAM["cc_ccii"]
PARAMS = CcCcii(num_steps=60, batch_size=8, learning_rate=0.03, num_bootstrap=100)


def test_cases_and_traps(tmp_path: Path) -> None:
    write_cc_ccii(tmp_path)
    ledger = Ledger("cc_ccii", "case")
    found = cases(tmp_path, ledger)
    reasons = sorted((e.reason, e.detail) for e in ledger.entries if e.reason)
    assert reasons == [
        (Reason.INVALID_LABEL, "a patient under two classes"),
        (Reason.INVALID_LABEL, "a patient under two classes"),
        (Reason.KNOWN_BAD, ""),
        (Reason.MISSING_SLICE, "5 of 12 slices"),
        (Reason.UNREADABLE, "no folder for this row of the list"),
    ]
    assert len(found) == 8  # six patients, two of them with two scans
    assert len({case.patient_id for case in found}) == 6
    assert all(sum(case.labels.values()) == 1 for case in found)  # type: ignore[arg-type]
    assert not any("328" in case.case_id + case.patient_id for case in found)


def test_a_mirrors_name_of_a_class_and_no_list(tmp_path: Path) -> None:
    write_cc_ccii(tmp_path)
    (tmp_path / "unzip_filenames.csv").unlink()
    (tmp_path / "NCP").rename(tmp_path / "COVID19")
    found = cases(tmp_path, Ledger("cc_ccii", "case"))
    assert sum(case.labels["NCP"] == 1 for case in found) == 2
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="unpack the archives"):
        cases(tmp_path, Ledger("cc_ccii", "case"))


def test_the_split_is_by_patient_in_every_class_and_fixed(tmp_path: Path) -> None:
    write_cc_ccii(tmp_path, num_patients=60)
    found = cases(tmp_path, Ledger("cc_ccii", "case"))
    splits = [
        split_cases(found, seed=seed, validation_fraction=0.3, test_fraction=0.4) for seed in (0, 1)
    ]
    assert splits[0] == splits[1]
    patients = {name: {case.patient_id for case in part} for name, part in splits[0].items()}
    assert {name: len(ids) for name, ids in patients.items()} == {
        "train": 42, "validation": 6, "test": 12,
    }  # fmt: skip
    assert not patients["train"] & patients["test"]
    by_class = pd.Series([case.stratum for case in splits[0]["test"] if case.patient_id])
    assert set(by_class) == {"CP", "NCP", "Normal"}


def test_a_split_by_scan_fails_the_guard(tmp_path: Path) -> None:
    """What a list of scans does that forgets that patients have several."""
    write_cc_ccii(tmp_path)
    found = cases(tmp_path, Ledger("cc_ccii", "case"))
    several = [case for case in found if case.stratum == "Normal"]
    assert len(several) > len({case.patient_id for case in several})
    leaky = [replace(case, split=("train", "test")[n % 2]) for n, case in enumerate(several)]
    with pytest.raises(ValueError, match="a patient may be in one part only"):
        split_cases(leaky, seed=0, validation_fraction=0.1, test_fraction=0.2)


def test_end_to_end(tmp_path: Path, checkpoint: Path) -> None:
    write_cc_ccii(tmp_path / "data", num_patients=45)
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert result["headline"]["name"] == "macro_auroc"
    assert set(result["headline"]["null"]) == {"prevalence", "random_encoder", "background_only"}
    assert result["headline"]["value"] > 0.9  # the planted boxes; none in the background
    assert result["nulls"]["prevalence"]["macro_auroc"]["value"] == 0.5
    assert result["nulls"]["background_only"]["macro_auroc"]["value"] < 0.85
    assert result["counts"]["test_patients"] == 9
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert {"confusion_scan", "confusion_patient", "roc_NCP", "pr_CP"} <= figures
    assert score(TASK, out, PARAMS)["metrics"] == result["metrics"]
