"""Validation scores by hand, and the same whatever the batches."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import tiny_model

from mg3d.models.mg3d import MG3D
from mg3d.params import Objective
from mg3d.training.feed import corrupt
from mg3d.training.validation import (
    evaluate,
    geometry_scores,
    retrieval_scores,
    shortcut_scores,
)


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
        self.objective = SimpleNamespace(
            **{"mlm_weight": 1, "mim_weight": 1, "itc_weight": 1, "cml_weight": 0, **weights}
        )
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Any) -> SimpleNamespace:
        labels = inputs.mlm_labels[inputs.mlm_labels != -100]
        own = torch.eye(4)[inputs.place] * 3
        return SimpleNamespace(
            mlm_logits=torch.tensor([math.log(5), 0.0, 0.0, 0.0]).repeat(len(labels), 1),
            reconstruction=torch.full_like(inputs.volume, 0.5),
            cml_fused_globals=None,
            cml_unimodal_globals=None,
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
    # images and texts are the four unit vectors, each image at a right angle to its text
    assert scores["alignment"] == pytest.approx(2)
    assert scores["modality_gap"] == pytest.approx(0, abs=1e-6)
    assert scores["image_effective_rank"] == pytest.approx(3)
    assert scores["text_uniformity"] == pytest.approx(-4)
    assert scores["collapsed"] == 0


def test_terms_without_weight_have_no_score() -> None:
    model = Known(mlm_weight=0, mim_weight=0)
    scores, similarity = evaluate(model, [_inputs([0, 1, 2, 3])])  # type: ignore[arg-type, list-item]
    assert "mlm" not in scores
    assert scores["text_to_image_recall_at_1"] == 1
    np.testing.assert_allclose(similarity, np.eye(4), atol=1e-6)


def test_a_text_shortcut_is_exposed_by_hand() -> None:
    """Both sides tell reports apart by their text; the images are all alike."""
    eye, alike = np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32)
    found = {
        f"{side}{end}": x
        for side in ("fused", "unimodal")
        for end, x in (("", eye), ("_text_only", eye), ("_image_only", alike))
    }
    scores = shortcut_scores(found, temperature=0.5)
    assert scores["cml_recall_at_1"] == scores["cml_text_only_recall_at_1"] == 1
    assert scores["cml_image_only_recall_at_1"] == 0  # a tie is no find
    assert scores["cml_text_only_loss"] == pytest.approx(math.log(1 + 3 * math.exp(-2)))
    assert scores["cml_image_only_loss"] == pytest.approx(math.log(4))


def test_collapse_is_flagged_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    spread, alike = rng.normal(size=(8, 5)), 100 + rng.normal(size=(8, 5))
    healthy = geometry_scores({"image": spread, "text": spread})
    assert healthy["collapsed"] == 0
    assert not capsys.readouterr().err
    scores = geometry_scores({"image": alike, "text": spread})
    assert scores["collapsed"] == 1
    assert scores["image_mean_cosine"] > 0.99
    assert scores["text_mean_cosine"] == healthy["text_mean_cosine"]
    said = capsys.readouterr().err
    assert "image embeddings of 8 studies have collapsed" in said
    assert "text" not in said


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


@pytest.mark.parametrize("itc_weight", [0.0, 1.0])
def test_the_real_model_that_does_not_look(
    itc_weight: float, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With pools that ignore the volume: CML from the image alone is chance, and it is flagged."""
    objective = Objective(mlm_weight=0, sfr_weight=0, mim_weight=0, itc_weight=itc_weight)
    torch.manual_seed(0)
    model = MG3D(tiny_model(encoder), objective).eval()
    batch = ranks.reports(list(range(6)))
    volume = batch.volume.float()
    keys = [(1, place) for place in range(6)]
    inputs = corrupt(replace(batch, volume=volume), keys, 0, objective, 4, 20)  # type: ignore[arg-type]
    seeing, similarity = evaluate(model, [inputs])
    assert seeing["cml_image_only_loss"] != pytest.approx(math.log(6), abs=1e-4)
    assert ("alignment" in seeing) == (similarity.shape == (6, 6)) == bool(itc_weight)
    capsys.readouterr()

    for pool in (model.image_pool, model.fused_image_pool):
        nn.init.zeros_(pool.linear.weight)
    blind, _ = evaluate(model, [inputs])
    assert blind["cml_image_only_loss"] == pytest.approx(math.log(6), abs=1e-4)
    assert blind["cml_text_only_loss"] != pytest.approx(math.log(6), abs=1e-4)
    assert blind["collapsed"] == 1
    assert blind["image_effective_rank"] == 0
    assert "image_top5_variance_fraction" not in blind  # there is no variance
    assert blind["text_effective_rank"] == pytest.approx(seeing["text_effective_rank"])
    assert "image embeddings of 6 studies have collapsed" in capsys.readouterr().err


def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    alone, _ = evaluate(Known(), [_inputs([0, 1, 2, 3])])  # type: ignore[arg-type, list-item]
    for found in ranks.run("validates", 2, tmp_path):
        assert found["scores"].tolist() == pytest.approx(list(alone.values()))
        np.testing.assert_allclose(found["similarity"], np.roll(np.eye(4), -1, axis=1), atol=1e-6)
