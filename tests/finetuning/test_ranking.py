import numpy as np
import pandas as pd
import pytest

from mg3d.finetuning.ranking import chance, counts, metrics, reranked_metrics
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
    found = metrics(IMAGE, TEXT, table(), PARAMS)
    values = {name: metric.value for name, metric in found.items()}
    # Texts find scans a1, a2 and b1 first; the last text prefers a2 and a1 to its own c1.
    assert values["text_to_volume_recall_at_1"] == 3 / 4
    assert values["text_to_volume_mrr"] == pytest.approx((3 + 1 / 3) / 4)
    # Volumes: c1 prefers text c1's neighbours a2 and c1, which are nearly the same.
    assert values["volume_to_text_recall_at_1"] == 3 / 4
    assert values["recall_at_1"] == 3 / 4
    # Any reconstruction of the scan counts, and both are queries the other way.
    assert values["siblings_text_to_volume_recall_at_1"] == 3 / 4
    assert values["siblings_volume_to_text_recall_at_1"] == 4 / 5
    # Volume to volume: patient a's scans do not find each other, but c (same labels).
    assert values["label_overlap_at_1"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert values["label_overlap_at_10"] is None
    # c1 and a2 have the same labels and a1 too: the first is relevant for three of four queries;
    # b has no other with its labels and is left out.
    assert values["same_labels_map_at_1"] == 1
    # In a gallery of four, five would always be found.
    assert values["recall_at_5"] is None
    assert found["recall_at_5"].reason == "a gallery of 4: recall at 5 would be 1"


def test_a_second_look_reorders_the_first_and_only_them() -> None:
    pair = np.full((4, 4), np.nan)
    pair[3, [1, 3]] = 0.1, 0.2  # the last text's first two, a2 and c1, the other way round
    pair[:3] = np.where(np.eye(4)[:3] > 0, 0.5, 0.1)
    pair[3, [0, 2]] = 0.1
    found = reranked_metrics(IMAGE, TEXT, pair, 2, table(), PARAMS)
    assert metrics(IMAGE, TEXT, table(), PARAMS)["text_to_volume_mrr"].value == pytest.approx(
        (3 + 1 / 3) / 4
    )
    # c1 was third: not among the two that are looked at again.
    assert found["reranked_text_to_volume_mrr"].value == pytest.approx((3 + 1 / 3) / 4)
    found = reranked_metrics(IMAGE, TEXT, pair, 3, table(), PARAMS)
    assert found["reranked_text_to_volume_mrr"].value == 1


def test_counts_say_what_is_tied() -> None:
    told = counts(IMAGE, TEXT, table().assign(text=["a", "a", "b", "c", "a"]))
    assert told["gallery"] == 4
    assert told["reconstructions"] == 5
    assert told["distinct_reports"] == 3
    assert told["tied_text_to_volume"] == 0
    same = counts(np.ones((5, 3)), np.ones((4, 3)), table().assign(text="a"))
    assert same["tied_text_to_volume"] == same["tied_volume_to_text"] == 4


def test_chance_by_hand() -> None:
    values = {name: metric.value for name, metric in chance(table()).items()}
    assert values["recall_at_1"] == 1 / 4
    assert values["text_to_volume_median_rank"] == 2.5
    assert values["text_to_volume_mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert values["siblings_text_to_volume_recall_at_1"] == pytest.approx((2 + 3) / 5 / 4)
    # Allowed neighbours: a1 and a2 see b (0) and c (1); b sees nothing alike; c sees a, a, b.
    assert values["label_overlap_at_1"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 2 / 3) / 4)


def test_without_siblings_or_labels_they_are_unavailable() -> None:
    single = table()[table()["primary"]].drop(columns=["label_x", "label_y"])
    found = metrics(IMAGE[[0, 2, 3, 4]], TEXT, single, PARAMS)
    assert found["siblings_text_to_volume_recall_at_1"].reason == (
        "every scan has one reconstruction"
    )
    assert found["label_overlap_at_1"].reason == "not every volume has labels"
