"""A linear head on an encoder's features: what every kind of classification trains.

``frozen`` embeds each volume once and trains the head alone (a linear probe); otherwise the encoder
learns too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mg3d.finetuning.embeddings import embedded
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case, OnMetrics
from mg3d.params import Finetune

EMBED_BATCH = 4
Volumes = Callable[[Sequence[Case]], Tensor]  # cases -> windowed volumes [B, 1, D, H, W]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], labels [B, ...] -> scalar
Predicted = Callable[[str], np.ndarray]  # part of the split -> float32 [N, K]


class Classifier(nn.Module):
    """Features, standardised by the training set, -> one logit per output.

    Without ``encoder`` the inputs are features [B, C] already, else volumes [B, 1, D, H, W].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, train_features: Tensor, num_outputs: int, encoder: Any, loss: Loss | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self.register_buffer("mean", train_features.mean(0))
        self.register_buffer("deviation", train_features.std(0, correction=0).clamp_min(1e-6))
        self.head = nn.Linear(train_features.shape[1], num_outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, inputs: Tensor) -> Tensor:
        """[B, C] or [B, 1, D, H, W], on any device -> [B, K]."""
        inputs = inputs.to(self.mean.device)
        features = inputs if self.encoder is None else self.encoder.features(inputs)
        return self.head((features - self.mean) / self.deviation)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Batch (inputs, labels as the loss takes them) -> {"total": loss}."""
        inputs, labels = batch
        assert self.loss is not None
        return {"total": self.loss(self.logits(inputs), labels)}


def fit_probe(
    features: Mapping[str, Tensor],
    train: Sequence[Case],
    validation: Sequence[Case],
    labels: Callable[[Sequence[Case]], Tensor],
    num_outputs: int,
    loss: Loss,
    params: Finetune,
    on_metrics: OnMetrics,
    prefix: str,
    encoder: Any = None,
    volumes: Volumes | None = None,
) -> Classifier:
    """Train a :class:`Classifier` for ``params.num_steps`` steps.

    ``features`` are those of the cases by id. With an ``encoder`` it is trained too, on
    ``volumes``; ``features`` (of the training cases) then only say how to standardise.
    """
    torch.manual_seed(params.seed)

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        if volumes is None:
            return torch.stack([features[case.case_id] for case in cases]), labels(cases)
        return volumes(cases), labels(cases)

    if not train:
        raise ValueError(f"{prefix}: no training cases; lower test_fraction")
    distinct = {case.case_id: case for case in train}
    of_train = torch.stack([features[name] for name in distinct])
    classifier = Classifier(of_train, num_outputs, encoder, loss)
    fit_head(classifier, train, validation, make_batch, params, on_metrics, prefix)
    return classifier


def fitted(
    encoder: Any,
    frozen: bool,
    split: Mapping[str, Sequence[Case]],
    volumes: PackedCases,
    labels: Callable[[Sequence[Case]], Tensor],
    num_outputs: int,
    loss: Loss,
    params: Finetune,
    on_metrics: OnMetrics,
    prefix: str,
    keep: Callable[[Classifier], None] | None = None,
) -> Predicted:
    """Train on train; returns what gives the logits of a part of the split, test when it opens.

    ``keep`` is given what was fitted.
    """
    from mg3d.models.vision import features_of

    train, validation = split["train"], split["validation"]
    known = [case for cases in split.values() for case in cases] if frozen else train
    features = embedded(encoder, known, volumes, features_of)
    classifier = fit_probe(
        features, train, validation, labels, num_outputs, loss, params, on_metrics, prefix,
        *(() if frozen else (encoder, volumes.batch)),
    )  # fmt: skip

    if keep is not None:
        keep(classifier)

    def inputs(cases: Sequence[Case]) -> Tensor:
        if not frozen:
            return volumes.batch(cases)
        return torch.stack([features[case.case_id] for case in cases])

    return lambda part: _logits(classifier, split[part], inputs, num_outputs)


@torch.inference_mode()
def _logits(
    classifier: Classifier, cases: Sequence[Case], inputs: Volumes, num_outputs: int
) -> np.ndarray:
    rows = [
        classifier.logits(inputs(cases[start : start + EMBED_BATCH]))
        for start in range(0, len(cases), EMBED_BATCH)
    ]
    return torch.cat(rows).cpu().numpy() if rows else np.zeros((0, num_outputs), np.float32)
