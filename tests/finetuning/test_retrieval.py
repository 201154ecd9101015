import numpy as np
import pandas as pd
import pytest
import torch

from mg3d.finetuning.retrieval import Projections, _chance, _metrics
from mg3d.params import Finetune

PARAMS = Finetune(num_bootstrap=100)


def table() -> pd.DataFrame:
    """Four scans of three patients; the first scan has two reconstructions."""
    return pd.DataFrame(
        {
            "patient_id": ["a", "a", "a", "b", "c"],
            "scan_id": ["a1", "a1", "a2", "b1", "c1"],
            "primary": [True, False, True, True, True],
            "label_x": [1, 1, 1, 0, 1],
            "label_y": [0, 0, 0, 1, 0],
        }
    )


def unit(rows: list[list[float]]) -> np.ndarray:
    array = np.array(rows)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


IMAGE = unit([[1, 0, 0], [0.9, 0.1, 0], [0.8, 0.6, 0], [0, 0, 1], [0.1, 1, 0]])
TEXT = unit([[0.89, 0.11, 0], [0.8, 0.6, 0], [0, 0, 1], [0.8, 0.59, 0]])


def test_metrics_by_hand() -> None:
    metrics = {name: m.value for name, m in _metrics(IMAGE, TEXT, table(), PARAMS).items()}
    # Texts find scans a1, a2 and b1 first; the last text prefers a2 and a1 to its own c1.
    assert metrics["text_to_volume_recall_at_1"] == 3 / 4
    assert metrics["text_to_volume_mrr"] == pytest.approx((3 + 1 / 3) / 4)
    # Volumes: c1 prefers text c1's neighbours a2 and c1, which are nearly the same.
    assert metrics["volume_to_text_recall_at_1"] == 3 / 4
    assert metrics["recall_at_1"] == 3 / 4
    # Any reconstruction of the scan counts, and both are queries the other way.
    assert metrics["siblings_text_to_volume_recall_at_1"] == 3 / 4
    assert metrics["siblings_volume_to_text_recall_at_1"] == 4 / 5
    # Volume to volume: patient a's scans do not find each other, but c (same labels).
    assert metrics["label_overlap_at_1"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert metrics["label_overlap_at_10"] is None


def test_chance_by_hand() -> None:
    chance = {name: m.value for name, m in _chance(table()).items()}
    assert chance["recall_at_1"] == 1 / 4
    assert chance["text_to_volume_median_rank"] == 2.5
    assert chance["text_to_volume_mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert chance["siblings_text_to_volume_recall_at_1"] == pytest.approx((2 + 3) / 5 / 4)
    # Allowed neighbours: a1 and a2 see b (0) and c (1); b sees nothing alike; c sees a, a, b.
    assert chance["label_overlap_at_1"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 2 / 3) / 4)


def test_without_siblings_or_labels_they_are_unavailable() -> None:
    single = table()[table()["primary"]].drop(columns=["label_x", "label_y"])
    metrics = _metrics(IMAGE[[0, 2, 3, 4]], TEXT, single, PARAMS)
    assert metrics["siblings_text_to_volume_recall_at_1"].reason == (
        "every scan has one reconstruction"
    )
    assert metrics["label_overlap_at_1"].reason == "not every volume has labels"


def test_projections_start_as_the_identity_and_learn() -> None:
    module = Projections(4, 0.1)
    image, text = torch.randn(6, 4), torch.randn(6, 4)
    assert torch.equal(module.image(image), image)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    first = module((image, text))["total"].item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = module((image, text))["total"]
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2
