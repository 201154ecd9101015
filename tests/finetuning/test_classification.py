import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mg3d.finetuning import classification
from mg3d.finetuning.classification import choose_thresholds, masked_loss
from mg3d.finetuning.probe import Classifier
from mg3d.finetuning.prompting import Prompted
from mg3d.metrics.classification import auroc, crg, f1
from mg3d.params import Finetune


def test_masked_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 5.0], [0.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [1.0, 0.0]])
    first = (2 * math.log(2) + math.log(1 + math.exp(-2))) / 3
    assert masked_loss(logits, labels).item() == pytest.approx(first + math.log(2))


def test_a_label_that_does_not_apply_has_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    masked_loss(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[:, 1].tolist() == [0, 0]
    assert logits.grad[:, 0].tolist() == [-0.25, 0.25]


def test_probe_starts_at_one_half_and_standardises() -> None:
    features = torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0]])
    probe = Classifier(features, 2, None)
    assert probe.logits(features).tolist() == [[0, 0], [0, 0]]
    probe.head.weight.data.fill_(1)
    assert probe.logits(features)[:, 0].tolist() == pytest.approx([-2, 2])  # constant third: 0


def test_frozen_probe_has_no_encoder_to_train() -> None:
    names = [name for name, _ in Classifier(torch.randn(4, 3), 1, None).named_parameters()]
    assert names == ["head.weight", "head.bias"]


NAMES = ("Cardiomegaly", "Lung nodule", "Rare")


def panel(seed: int, num_scans: int) -> pd.DataFrame:
    """Two reconstructions of every scan, the second of which is all wrong; "Rare" occurs once."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, (num_scans, 3))
    label[:, 2] = np.arange(num_scans) == 0
    probability = np.clip(0.5 * label + generator.uniform(0, 0.6, label.shape), 0, 1)
    rows = {"patient_id": np.repeat([f"p{n}" for n in range(num_scans)], 2)}
    rows |= {"primary": np.tile([True, False], num_scans)}
    for column, name in enumerate(NAMES):
        rows[name] = np.repeat(label[:, column], 2)
        both = np.column_stack([probability[:, column], 1 - label[:, column]])
        rows[f"p_{name}"] = both.ravel()
    return pd.DataFrame(rows)


def write_panel(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    test, validation = panel(0, 20), panel(1, 12)
    thresholds: list[dict] = []
    for system in ("model", *classification.NULLS):
        test.to_csv(folder / f"{system}.csv", index=False)
        validation.to_csv(folder / f"{system}_validation.csv", index=False)
        thresholds += choose_thresholds(system, validation)
    pd.DataFrame(thresholds).to_csv(folder / "thresholds.csv", index=False)
    return test, validation


def test_a_panel_is_the_mean_over_labels_with_both_classes(tmp_path: Path) -> None:
    test, _ = write_panel(tmp_path)
    scores = classification.score(tmp_path, Finetune(num_bootstrap=100))
    one = test[test["primary"]]
    expected = [auroc(one[name].to_numpy(), one[f"p_{name}"].to_numpy()) for name in NAMES[:2]]
    assert scores.metrics["mean_auroc"].value == pytest.approx(np.mean(expected))
    assert scores.counts["labels_skipped"] == 1
    assert scores.metrics["Rare_auroc"].reason == (
        "1 positive and 19 negative test cases: 3 of each are needed"
    )
    drawn = classification.draw(tmp_path, Finetune())
    assert {"co_occurrence", "roc_lung_nodule", "pr_rare", "calibration_rare"} <= set(drawn)
    # The literature's number: every reconstruction.
    both = [auroc(test[name].to_numpy(), test[f"p_{name}"].to_numpy()) for name in NAMES[:2]]
    assert scores.metrics["all_volumes_mean_auroc"].value == pytest.approx(np.mean(both))
    assert np.mean(both) < np.mean(expected) - 0.1
    assert any("0.333" in note for note in scores.notes)


def test_thresholds_are_those_of_validation(tmp_path: Path) -> None:
    test, validation = write_panel(tmp_path)
    stored = pd.read_csv(tmp_path / "thresholds.csv")
    cut = stored[stored["system"] == "model"].set_index("label")["threshold"]
    read = pd.read_csv(tmp_path / "model_validation.csv")
    again = {row["label"]: row["threshold"] for row in choose_thresholds("model", read)}
    assert cut.to_dict() == pytest.approx(again)
    one, known = test[test["primary"]], validation[validation["primary"]]
    scores = classification.score(tmp_path, Finetune(num_bootstrap=100))
    called = {name: (one[f"p_{name}"] >= cut[name]).to_numpy() for name in NAMES[:2]}
    for name in NAMES[:2]:
        value = scores.metrics[f"{name}_f1"].value
        assert value == pytest.approx(f1(one[name].to_numpy(), called[name]))
        best = max(f1(known[name].to_numpy(), known[f"p_{name}"] >= t) for t in known[f"p_{name}"])
        at = f1(known[name].to_numpy(), (known[f"p_{name}"] >= cut[name]).to_numpy())
        assert at == pytest.approx(best)
    cells = np.concatenate([one[name].to_numpy() for name in NAMES[:2]])
    calls = np.concatenate([called[name] for name in NAMES[:2]])
    assert scores.metrics["crg"].value == pytest.approx(crg(cells, calls))


def test_without_both_classes_in_validation_f1_is_null_and_auroc_is_not(tmp_path: Path) -> None:
    _, validation = write_panel(tmp_path)
    validation["Cardiomegaly"] = 0
    rows = [
        row for s in ("model", *classification.NULLS) for row in choose_thresholds(s, validation)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "thresholds.csv", index=False)
    metrics = classification.score(tmp_path, Finetune(num_bootstrap=100)).metrics
    assert metrics["Cardiomegaly_f1"].reason == (
        "validation has 0 positive and 12 negative cases: no threshold"
    )
    assert metrics["Cardiomegaly_auroc"].value is not None
    assert metrics["mean_f1"].value == metrics["Lung nodule_f1"].value


def test_prompts_are_a_softmax_over_yes_and_no() -> None:
    torch.manual_seed(0)
    text = torch.nn.functional.normalize(torch.randn(2, 2, 8), dim=-1)
    image = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    head = Prompted(text, 0.1, masked_loss)
    pairs = torch.einsum("be,kpe->bkp", image, text) / 0.1
    assert torch.allclose(head.logits(image).sigmoid(), pairs.softmax(-1)[..., 0], atol=1e-5)
