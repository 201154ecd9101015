"""Contrastive training of a dual encoder on the pairs of a task.

`Projections` learn on frozen embeddings; in `DualEncoder` everything learns that the two embeddings
read, but for the frozen text encoder. Either way the step with the best recall on the validation
pairs is kept: the mean over both directions of recall at 1, 5 and 10 ("rsum"), as far as the
gallery is larger than that.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mg3d.device import best, moved
from mg3d.finetuning.dual_encoding import Encoded
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case, OnMetrics
from mg3d.metrics.retrieval import mean_rank_percentile, ranks, recall_at
from mg3d.objectives.contrastive import info_nce
from mg3d.params import Finetune

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D

KS = (1, 5, 10)
BATCH = 4
Embeddings = tuple[np.ndarray, np.ndarray]  # image [V, E], text [V, E]; pairs in the same order


class Projections(nn.Module):
    """One linear map per side on frozen embeddings, both starting as the identity."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.image = nn.Linear(width, width, bias=False)
        self.text = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.image.weight)
        nn.init.eye_(self.text.weight)
        self.temperature = temperature

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """(image [B, E], text [B, E]) -> symmetric InfoNCE."""
        image, text = batch
        return {"total": info_nce(self.image(image), self.text(text), self.temperature)}

    @torch.no_grad()
    def applied(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[V, E], [T, E] -> the same, projected and L2-normalised."""
        rows = (
            nn.functional.normalize(
                linear(torch.from_numpy(given).to(linear.weight.device)), dim=-1
            )
            .cpu()
            .numpy()
            for linear, given in ((self.image, image), (self.text, text))
        )
        return next(rows), next(rows)


class DualEncoder(nn.Module):
    """The model's two towers; trained is what their embeddings read, the rest stays."""

    def __init__(self, model: "MG3D", temperature: float) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.temperature = temperature
        for part in (
            model.vision_encoder, model.token_projector, model.image_projection,
            model.image_pool, model.itc_image_head, model.text_pool, model.itc_text_head,
        ):  # fmt: skip
            part.requires_grad_(True)
        model.image_type.requires_grad_(True)

    @property
    def encoder(self) -> nn.Module:
        """What `fit_head` trains at a rate of its own."""
        return self.model.vision_encoder

    def embed(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(volume [B, 1, D, H, W], sentences [B, S, E], which exist [B, S]) -> [B, E] twice."""
        volume, sentences, mask = batch
        return self.model.encode_image(volume), self.model.embed_sentences(sentences, mask)

    def forward(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """-> symmetric InfoNCE."""
        image, text = self.embed(batch)
        return {"total": info_nce(image, text, self.temperature)}


def mean_recall(image: np.ndarray, text: np.ndarray) -> float:
    """Mean over both directions and K of recall at K of pairs [V, E]; where the gallery is too
    small for that to tell anything, the mean rank percentile."""
    similarity, own = text @ image.T, np.eye(len(text), dtype=bool)
    both = ranks(similarity, own), ranks(similarity.T, own)
    ks = [k for k in KS if k < len(text)]
    if len(ks) < 2:
        return float(np.mean([mean_rank_percentile(rank, len(text)) for rank in both]))
    return float(np.mean([recall_at(rank, k) for rank in both for k in ks]))


def fit_projections(
    encoded: Encoded,
    train: Sequence[Case],
    validation: Sequence[Case],
    params: Finetune,
    temperature: float,
    on_metrics: OnMetrics,
    prefix: str,
) -> Projections:
    """`Projections` trained on the training pairs."""
    projections = Projections(len(next(iter(encoded.text.values()))), temperature)

    def rows(cases: Sequence[Case]) -> Embeddings:
        image = np.stack([encoded.image[case.case_id] for case in cases])
        return image, np.stack([encoded.text[case.scan_id] for case in cases])

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        image, text = rows(cases)
        return torch.from_numpy(image), torch.from_numpy(text)

    report = _silent if "/" in prefix else on_metrics
    criterion = _by_recall(validation, lambda: projections.applied(*rows(validation)))
    fit_head(projections, train, validation, make_batch, params, report, prefix, criterion)
    return projections


def fit_dual_encoder(
    model: "MG3D",
    sentences: Mapping[str, Tensor],
    volumes: PackedCases,
    train: Sequence[Case],
    validation: Sequence[Case],
    params: Finetune,
    temperature: float,
    on_metrics: OnMetrics,
    prefix: str,
) -> None:
    """Train ``model``'s dual encoder in place; ``sentences`` [S, E] by case id, S varies."""
    torch.manual_seed(params.seed)
    dual = DualEncoder(model, temperature)

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor, Tensor]:
        own = [sentences[case.case_id] for case in cases]
        padded = nn.utils.rnn.pad_sequence(own, batch_first=True)
        length = torch.tensor([len(rows) for rows in own])
        return volumes.batch(cases), padded, torch.arange(padded.shape[1]) < length[:, None]

    @torch.no_grad()
    def embedded() -> Embeddings:
        parts = [
            dual.embed(moved(make_batch(validation[start : start + BATCH]), best()))
            for start in range(0, len(validation), BATCH)
        ]
        image, text = (torch.cat(side).cpu().numpy() for side in zip(*parts, strict=True))
        return image, text

    criterion = _by_recall(validation, embedded)
    fit_head(dual, train, validation, make_batch, params, on_metrics, prefix, criterion)
    model.requires_grad_(False)


def _by_recall(
    validation: Sequence[Case], embedded: Callable[[], Embeddings]
) -> Callable[[], float] | None:
    """What chooses a step; None without the two pairs that a ranking needs."""
    return None if len(validation) < 2 else lambda: -mean_recall(*embedded())


def _silent(step: int, metrics: dict[str, float]) -> None:
    """Nobody watches a baseline learn."""
