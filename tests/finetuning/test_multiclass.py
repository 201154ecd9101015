from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from mg3d.finetuning import multiclass
from mg3d.finetuning.multiclass import background, by_patient
from mg3d.metrics.classification import multiclass_brier
from mg3d.params import Finetune

ROWS = [
    ("a", "CP", 0.7, 0.2, 0.1), ("a", "CP", 0.15, 0.55, 0.3), ("b", "CP", 0.5, 0.3, 0.2),
    ("c", "CP", 0.6, 0.2, 0.2), ("d", "NCP", 0.2, 0.7, 0.1), ("e", "NCP", 0.1, 0.5, 0.4),
    ("f", "NCP", 0.4, 0.3, 0.3), ("g", "Normal", 0.1, 0.1, 0.8), ("h", "Normal", 0.2, 0.2, 0.6),
    ("i", "Normal", 0.1, 0.3, 0.6),
]  # fmt: skip


def write(folder: Path, rows: list[tuple]) -> None:
    table = pd.DataFrame(rows, columns=["patient_id", "class", "p_CP", "p_NCP", "p_Normal"])
    for system in ("model", *multiclass.NULLS):
        table.to_csv(folder / f"{system}.csv", index=False)


def test_scores_by_hand(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    scores = multiclass.score(tmp_path, Finetune(num_bootstrap=100))
    assert scores.metrics["accuracy"].value == 0.8
    assert scores.metrics["balanced_accuracy"].value == pytest.approx((3 / 4 + 2 / 3 + 1) / 3)
    # The mean of patient a's two scans, (0.425, 0.375, 0.2), is right: one error is left.
    assert scores.metrics["patient_accuracy"].value == pytest.approx(8 / 9)
    assert scores.counts["confusion_CP_as_NCP"] == 1
    assert scores.counts["test_patients"] == 9
    assert multiclass.draw(tmp_path, Finetune()).keys() >= {"confusion_scan", "confusion_patient"}


def test_a_class_with_too_few_cases_is_null_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path, ROWS[:-1])
    found = multiclass.score(tmp_path, Finetune(num_bootstrap=100)).metrics["macro_auroc"]
    assert (found.value, found.reason) == (
        None, "a class has 2 test cases: 3 of each are needed",
    )  # fmt: skip


def test_mean_probability_of_a_patient() -> None:
    table = pd.DataFrame(ROWS, columns=["patient_id", "class", "p_CP", "p_NCP", "p_Normal"])
    first = by_patient(table).iloc[0]
    assert [first["p_CP"], first["p_NCP"], first["p_Normal"]] == pytest.approx([0.425, 0.375, 0.2])


def test_brier_and_calibration_agree_with_the_libraries() -> None:
    generator = np.random.default_rng(0)
    label, raw = generator.integers(0, 3, 50), generator.random((50, 3))
    probability = raw / raw.sum(1, keepdims=True)
    theirs = brier_score_loss(label, probability, labels=[0, 1, 2], scale_by_half=False)
    assert multiclass_brier(label, probability) == pytest.approx(theirs)
    ece = multiclass_calibration_error(
        torch.tensor(probability), torch.tensor(label), num_classes=3, n_bins=15, norm="l1"
    )
    values = dict(zip(multiclass.METRICS, multiclass._statistics(label, probability), strict=True))
    assert values["calibration_error"] == pytest.approx(float(ece), abs=1e-5)


def test_background_blanks_the_chest_and_keeps_the_corners() -> None:
    kept = background(torch.ones(1, 1, 2, 20, 40))[0, 0]
    assert kept[:, 10, 20].tolist() == [0, 0]
    assert kept[:, 0, 0].tolist() == kept[:, -1, -1].tolist() == [1, 1]
    assert float(kept.mean()) == pytest.approx(1 - np.pi / 4 * 0.81, abs=0.02)
