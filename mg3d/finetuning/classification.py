"""Kind: one or more binary labels per volume, some of which apply to some cases only.

``frozen`` embeds each volume once and trains a linear probe; ``finetune`` and ``scratch`` train
the encoder too. A label that is None for a case (severity without COVID) enters neither the loss
nor a metric. Nulls: ``prevalence``, one probability for all; ``random_encoder``, the same probe on
an untrained encoder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mg3d import paths
from mg3d.figures import classification as figures
from mg3d.finetuning.encoders import random_encoder, starting_encoder
from mg3d.finetuning.fitting import fit_head
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger
from mg3d.metrics.bootstrap import Estimate, estimate, unavailable
from mg3d.metrics.classification import auroc, average_precision, brier
from mg3d.params import Finetune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "classification"
MODEL, NULLS = "model", ("prevalence", "random_encoder")
MIN_PER_CLASS = 3
EMBED_BATCH = 4


class Classifier(nn.Module):
    """Features, standardised by the training set, -> one logit per label.

    Without ``encoder`` the inputs are features [B, C] already, else volumes [B, 1, D, H, W].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, train_features: Tensor, num_labels: int, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", train_features.mean(0))
        self.register_buffer("deviation", train_features.std(0, correction=0).clamp_min(1e-6))
        self.head = nn.Linear(train_features.shape[1], num_labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, inputs: Tensor) -> Tensor:
        """[B, C] or [B, 1, D, H, W] -> [B, K]."""
        features = inputs if self.encoder is None else self.encoder.features(inputs)
        return self.head((features - self.mean) / self.deviation)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Batch (inputs, labels [B, K] with NaN where one does not apply) -> {"total": loss}."""
        inputs, labels = batch
        return {"total": masked_loss(self.logits(inputs), labels)}


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over applicable cases of each label, summed over labels.

    ``labels`` [B, K] in {0, 1, NaN}; a label without an applicable case in the batch adds 0.
    """
    applies = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), reduction="none"
    ).where(applies, 0.0)
    return (losses.sum(0) / applies.sum(0).clamp_min(1)).sum()


def predict(
    split: Split,
    checkpoint: Path,
    predictions: Path,
    params: Finetune,
    ledger: Ledger,
    on_metrics: OnMetrics,
    prefix: str,
) -> dict[str, Any]:
    """Write ``<system>.csv`` for the model and each null (see `Kind.predict`).

    Raises ValueError for the mode ``zero_shot``.
    """
    if params.mode == "zero_shot":
        raise ValueError("a classifier has no zero_shot mode: use frozen, finetune or scratch")
    encoder, contract, provenance = starting_encoder(checkpoint, params)
    names = sorted({name for cases in split.values() for case in cases for name in case.labels})
    with packed_cases(split, contract, ledger) as volumes:
        frozen = params.mode == "frozen"
        model = _fitted(encoder, frozen, split, volumes, names, params, on_metrics, prefix)
        null = _fitted(
            random_encoder(checkpoint, params.seed + 1),
            True,
            split,
            volumes,
            names,
            params,
            lambda step, metrics: None,
            f"{prefix}/random_encoder",
        )
        labels = _labels(split["train"], names)
        counts = (~np.isnan(labels)).sum(axis=0)
        # One extra case of each class, so that no probability is 0 or 1 (Laplace).
        prevalence = (np.nansum(labels, axis=0) + 1) / (counts + 2)
        for system, probabilities in (
            (MODEL, model),
            ("random_encoder", null),
            ("prevalence", np.tile(prevalence, (len(split["test"]), 1))),
        ):
            _write(predictions / f"{system}.csv", split["test"], names, probabilities)
    return provenance


def score(predictions: Path, params: Finetune) -> Scores:
    """AUROC, average precision and Brier score of each label over the cases it applies to."""
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    table = tables[MODEL]
    counts: dict[str, float] = {"test_cases": len(table)}
    for name in _names(table):
        counts[f"{name}_applies"] = int(table[name].notna().sum())
        counts[f"{name}_positive"] = int((table[name] == 1).sum())
    return Scores(
        metrics=_metrics(table, params),
        nulls={name: _metrics(tables[name], params) for name in NULLS},
        counts=counts,
        notes=(
            "labels are scored on the cases they apply to only (severity: COVID-positives)",
            f"a metric needs {MIN_PER_CLASS} test cases of each class",
        ),
    )


def draw(predictions: Path, params: Finetune) -> "dict[str, Figure]":
    """``roc_<label>`` and ``calibration_<label>``."""
    drawn = {}
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    for name in _names(tables[MODEL]):
        curves = {}
        for system, table in tables.items():
            applies = table[table[name].notna()]
            curves[system] = (applies[name].to_numpy(), applies[f"p_{name}"].to_numpy())
        drawn[f"roc_{name}"] = figures.roc(curves, name)
        drawn[f"calibration_{name}"] = figures.calibration(curves, name)
    return drawn


def _fitted(
    encoder: Any,
    frozen: bool,
    split: Split,
    volumes: PackedCases,
    names: Sequence[str],
    params: Finetune,
    on_metrics: OnMetrics,
    prefix: str,
) -> np.ndarray:
    """Train head (and encoder) on train; probabilities [N, K] of the test cases."""
    torch.manual_seed(params.seed)
    embedded = [case for cases in split.values() for case in cases] if frozen else split["train"]
    features = _embed(encoder, embedded, volumes)

    def inputs(cases: Sequence[Case]) -> Tensor:
        if frozen:
            return torch.stack([features[case.case_id] for case in cases])
        return volumes.batch(cases)

    def make_batch(cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        return inputs(cases), torch.from_numpy(_labels(cases, names))

    train_features = torch.stack([features[case.case_id] for case in split["train"]])
    classifier = Classifier(train_features, len(names), None if frozen else encoder)
    fit_head(
        classifier, split["train"], split["validation"], make_batch, params, on_metrics, prefix
    )
    test = split["test"]
    with torch.inference_mode():
        logits = [
            classifier.logits(inputs(test[start : start + EMBED_BATCH]))
            for start in range(0, len(test), EMBED_BATCH)
        ]
    return torch.cat(logits).sigmoid().numpy() if logits else np.zeros((0, len(names)))


@torch.no_grad()
def _embed(encoder: Any, cases: Sequence[Case], volumes: PackedCases) -> dict[str, Tensor]:
    """Features [C] by case id, each volume once."""
    encoder.eval()
    features: dict[str, Tensor] = {}
    for start in range(0, len(cases), EMBED_BATCH):
        chosen = cases[start : start + EMBED_BATCH]
        rows = encoder.features(volumes.batch(chosen))
        features |= {case.case_id: row for case, row in zip(chosen, rows, strict=True)}
    return features


def _labels(cases: Sequence[Case], names: Sequence[str]) -> np.ndarray:
    """float32 [N, K], NaN where a label does not apply."""
    return np.array(
        [
            [np.nan if case.labels.get(name) is None else case.labels[name] for name in names]
            for case in cases
        ],
        dtype=np.float32,
    ).reshape(len(cases), len(names))


def _write(
    path: Path, cases: Sequence[Case], names: Sequence[str], probability: np.ndarray
) -> None:
    table = pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "patient_id": [case.patient_id for case in cases],
            **dict(zip(names, _labels(cases, names).T, strict=True)),
            **{f"p_{name}": probability[:, index] for index, name in enumerate(names)},
        }
    )
    with paths.atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


def _names(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]


def _metrics(table: pd.DataFrame, params: Finetune) -> dict[str, Estimate]:
    metrics = {}
    for name in _names(table):
        applies = table[table[name].notna()]
        label, probability = applies[name].to_numpy(), applies[f"p_{name}"].to_numpy()
        patients = applies["patient_id"].tolist()
        positive, negative = int((label == 1).sum()), int((label == 0).sum())
        for metric, function in (
            ("auroc", auroc),
            ("average_precision", average_precision),
            ("brier", brier),
        ):
            if min(positive, negative) < MIN_PER_CLASS:
                metrics[f"{name}_{metric}"] = unavailable(
                    f"{positive} positive and {negative} negative test cases: "
                    f"{MIN_PER_CLASS} of each are needed"
                )
                continue
            metrics[f"{name}_{metric}"] = estimate(
                lambda rows, f=function, y=label, p=probability: f(y[rows], p[rows]),  # type: ignore[misc]
                patients,
                num_resamples=params.num_bootstrap,
                seed=params.seed,
            )
    return metrics
