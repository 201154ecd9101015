"""Validation scores by hand, and the same whatever the batches."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from mg3d.training.validation import evaluate, retrieval_scores


def test_retrieval_both_ways_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.0], [0.8, 0.5, 0.0], [0.7, 0.6, 0.2]])
    # rows: own report is first, second, third; columns: own volume is first, second, first
    scores = retrieval_scores(similarity)
    assert scores["image_to_text_recall_at_1"] == pytest.approx(1 / 3)
    assert scores["image_to_text_median_rank"] == 2
    assert scores["image_to_text_recall_at_5"] == 1
    assert scores["text_to_image_recall_at_1"] == pytest.approx(2 / 3)
    assert scores["text_to_image_median_rank"] == 1


class Known(nn.Module):
    """Knows the first word of a vocabulary of four well, rebuilds 0.5, embeds samples apart."""

    def __init__(self, **weights: float) -> None:
        super().__init__()
        self.width = 4
        self.objective = SimpleNamespace(**{"mlm_weight": 1, "mim_weight": 1, **weights})
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Any) -> SimpleNamespace:
        labels = inputs.mlm_labels[inputs.mlm_labels != -100]
        own = torch.eye(4)[inputs.place] * 3
        return SimpleNamespace(
            mlm_logits=torch.tensor([math.log(5), 0.0, 0.0, 0.0]).repeat(len(labels), 1),
            reconstruction=torch.full_like(inputs.volume, 0.5),
            itc_image=own,
            itc_text=own.roll(1, dims=1) if self.objective.mlm_weight else own,
        )


def _inputs(places: list[int]) -> SimpleNamespace:
    labels = torch.tensor([[0, -100, 0], [-100, -100, 1], [0, -100, -100], [-100, 0, -100]])
    volume = torch.tensor([0.5, 0.5, 0.0, 1.0]).reshape(4, 1, 1, 1, 1).expand(4, 1, 2, 2, 2)
    mask = torch.zeros(4, 1, 2, 2, 2, dtype=torch.bool)
    mask[:, :, 0] = True
    place = torch.tensor(places)
    return SimpleNamespace(
        mlm_labels=labels[place], volume=volume[place], voxel_mask=mask[place], place=place
    )


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3]], [[0], [1, 2, 3]], [[0, 1, 2], [3]]])
def test_scores_are_means_over_words_and_voxels(batches: list[list[int]]) -> None:
    # five words: four of the first kind (probability 5/8), one other (1/8)
    # voxels: half of the samples are rebuilt, half are 0.5 off
    scores, similarity = evaluate(Known(), [_inputs(places) for places in batches])  # type: ignore[arg-type, misc]
    assert scores["mlm_accuracy"] == pytest.approx(4 / 5)
    assert scores["mlm"] == pytest.approx(-(4 * math.log(5 / 8) + math.log(1 / 8)) / 5)
    assert scores["mim"] == pytest.approx(0.125)
    np.testing.assert_allclose(similarity, np.roll(np.eye(4), -1, axis=1), atol=1e-6)
    assert scores["image_to_text_recall_at_1"] == 0


def test_terms_without_weight_have_no_score() -> None:
    model = Known(mlm_weight=0, mim_weight=0)
    scores, similarity = evaluate(model, [_inputs([0, 1, 2, 3])])  # type: ignore[arg-type, list-item]
    assert "mlm" not in scores
    assert scores["text_to_image_recall_at_1"] == 1
    np.testing.assert_allclose(similarity, np.eye(4), atol=1e-6)


def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    alone, _ = evaluate(Known(), [_inputs([0, 1, 2, 3])])  # type: ignore[arg-type, list-item]
    for found in ranks.run("validates", 2, tmp_path):
        assert found["scores"].tolist() == pytest.approx(list(alone.values()))
        np.testing.assert_allclose(found["similarity"], np.roll(np.eye(4), -1, axis=1), atol=1e-6)
