"""Kind: one of several classes per volume, by cross-entropy; scored by scan and by patient.

A patient's probabilities are the mean over the scans. Modes as in `classification`: ``frozen``,
``finetune``, ``scratch``. Nulls: ``prevalence``, the class shares of training for all;
``random_encoder``; and ``background_only``, a control against shortcuts: the same encoder and probe
on volumes whose inside is blank. If that separates the classes, something else than the disease
does: file type, field of view, table, scanner.
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
from mg3d.finetuning.fitted import keep_fitted
from mg3d.finetuning.images import PackedCases, packed_cases
from mg3d.finetuning.probe import fitted
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger
from mg3d.metrics.bootstrap import Estimate, estimates, unavailable
from mg3d.metrics.classification import (
    balanced_accuracy,
    calibration_error,
    confusion,
    macro_auroc,
    macro_f1,
    multiclass_brier,
)
from mg3d.params import Finetune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "multiclass"
MODEL, NULLS = "model", ("prevalence", "random_encoder", "background_only")
MIN_PER_CLASS = 3
INSIDE_FRACTION = 0.9  # of either in-plane axis: the ellipse that `background` blanks
METRICS = ("macro_auroc", "balanced_accuracy", "accuracy", "macro_f1", "brier", "calibration_error")


def background(volumes: Tensor) -> Tensor:
    """[B, 1, D, H, W] with everything blank but what lies outside an ellipse in each plane."""
    height, width = volumes.shape[-2:]
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    outside = (y[:, None] ** 2 + x[None] ** 2) > INSIDE_FRACTION**2
    return volumes * outside.to(volumes.dtype)


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

    Raises ValueError for a mode other than frozen, finetune and scratch.
    """
    if params.mode not in ("frozen", "finetune", "scratch"):
        raise ValueError(f"{NAME} has no mode {params.mode}: use frozen, finetune or scratch")
    encoder, contract, provenance = starting_encoder(checkpoint, params)
    names = sorted({name for cases in split.values() for case in cases for name in case.labels})
    frozen = params.mode == "frozen"
    heads: list[nn.Module] = []

    def labels(cases: Sequence[Case]) -> Tensor:
        return torch.tensor([_class(case, names) for case in cases])

    with packed_cases(split, contract, ledger) as volumes:
        untrained = random_encoder(checkpoint, params.seed + 1)
        pretrained, _, _ = starting_encoder(
            checkpoint, params.model_copy(update={"mode": "frozen"})
        )
        systems: tuple[tuple[str, Any, bool, PackedCases], ...] = (
            (MODEL, encoder, frozen, volumes),
            ("random_encoder", untrained, True, volumes),
            ("background_only", pretrained, True, volumes.through("background", background)),
        )
        found = {}
        for system, start, is_frozen, images in systems:
            is_model = system == MODEL
            logits = fitted(
                start,
                is_frozen,
                split,
                images,
                labels,
                len(names),
                F.cross_entropy,
                params,
                on_metrics if is_model else lambda step, metrics: None,
                prefix if is_model else f"{prefix}/{system}",
                heads.append if is_model else None,
            )
            found[system] = {
                part: torch.from_numpy(logits(part)).softmax(-1).numpy()
                for part in ("validation", "test")
            }
    shares = np.bincount([_class(case, names) for case in split["train"]], minlength=len(names)) + 1
    found["prevalence"] = {
        part: np.tile(shares / shares.sum(), (len(split[part]), 1))
        for part in ("validation", "test")
    }
    keep_fitted(
        predictions, heads[0], task=prefix, kind=NAME, params=params,
        contract_digest=contract.digest(), labels=names,
    )  # fmt: skip
    for system, of_part in found.items():
        _write(predictions / f"{system}.csv", split["test"], names, of_part["test"])
        path = predictions / f"{system}_validation.csv"
        _write(path, split["validation"], names, of_part["validation"])
    return provenance


def score(predictions: Path, params: Finetune) -> Scores:
    """Each metric by scan, and as ``patient_<metric>`` by patient."""
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    table = tables[MODEL]
    names = _names(table)
    patients = by_patient(table)
    counts: dict[str, float] = {"test_scans": len(table), "test_patients": len(patients)}
    cells = {}
    for level, rows in (("scan", table), ("patient", patients)):
        counts |= {f"{level}s_{name}": int((rows["class"] == name).sum()) for name in names}
        label, probability = _arrays(rows, names)
        cells[level] = confusion(label, probability.argmax(1), len(names))
    for i, reference in enumerate(names):
        for j, called in enumerate(names):
            counts[f"confusion_{reference}_as_{called}"] = int(cells["scan"][i, j])
    return Scores(
        metrics=_metrics(table, params),
        nulls={name: _metrics(tables[name], params) for name in NULLS},
        counts=counts,
        notes=(
            "macro AUROC is one class against the rest, mean over classes; "
            f"{MIN_PER_CLASS} test scans of each class are needed",
            "patient_*: mean probability over a patient's scans",
            "background_only sees the corners of each plane only: far above prevalence, the data "
            "give the class away by something else than the lungs",
            "calibration_error is that of the class called; brier sums over classes",
        ),
    )


def draw(predictions: Path, params: Finetune) -> "dict[str, Figure]":
    """``confusion_scan`` and ``_patient``; ``roc_``, ``pr_`` and ``calibration_<class>``."""
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    names = _names(tables[MODEL])
    drawn = {}
    for level, rows in (("scan", tables[MODEL]), ("patient", by_patient(tables[MODEL]))):
        label, probability = _arrays(rows, names)
        counts = confusion(label, probability.argmax(1), len(names))
        drawn[f"confusion_{level}"] = figures.confusion(counts, names, f"by {level}")
    for name in names:
        curves = {
            system: ((table["class"] == name).to_numpy(int), table[f"p_{name}"].to_numpy())
            for system, table in tables.items()
        }
        drawn[f"roc_{name}"] = figures.roc(curves, f"{name} against the rest")
        drawn[f"pr_{name}"] = figures.precision_recall(curves, f"{name} against the rest")
        drawn[f"calibration_{name}"] = figures.calibration(curves, name)
    return drawn


def by_patient(table: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: its class, and the mean of each probability over its scans."""
    grouped = table.groupby("patient_id", sort=True)
    means = grouped[[f"p_{name}" for name in _names(table)]].mean()
    return pd.concat([grouped["class"].first(), means], axis=1).reset_index()


def _statistics(label: np.ndarray, probability: np.ndarray) -> list[float]:
    """Values of :data:`METRICS`."""
    called = probability.argmax(1)
    counts = confusion(label, called, probability.shape[1])
    return [
        macro_auroc(label, probability),
        balanced_accuracy(counts),
        float(np.mean(label == called)),
        macro_f1(counts),
        multiclass_brier(label, probability),
        calibration_error((label == called).astype(int), probability.max(1)),
    ]


def _metrics(table: pd.DataFrame, params: Finetune) -> dict[str, Estimate]:
    names = _names(table)
    found: dict[str, Estimate] = {}
    for prefix, rows in (("", table), ("patient_", by_patient(table))):
        label, probability = _arrays(rows, names)
        fewest = int(np.bincount(label, minlength=len(names)).min())
        if fewest < MIN_PER_CLASS:
            reason = f"a class has {fewest} test cases: {MIN_PER_CLASS} of each are needed"
            found |= {f"{prefix}{metric}": unavailable(reason) for metric in METRICS}
            continue
        values = estimates(
            lambda r, y=label, p=probability: np.array(_statistics(y[r], p[r])),  # type: ignore[misc]
            rows["patient_id"].tolist(),
            num_statistics=len(METRICS),
            num_resamples=params.num_bootstrap,
            seed=params.seed,
        )
        found |= {f"{prefix}{m}": value for m, value in zip(METRICS, values, strict=True)}
    return found


def _class(case: Case, names: Sequence[str]) -> int:
    """Index of the class whose label is 1."""
    present = [index for index, name in enumerate(names) if case.labels.get(name) == 1]
    assert len(present) == 1, f"{case.case_id} has {len(present)} classes"
    return present[0]


def _arrays(table: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Class indices [N] and probabilities [N, C]."""
    label = table["class"].map({name: index for index, name in enumerate(names)})
    return label.to_numpy(int), table[[f"p_{name}" for name in names]].to_numpy(float)


def _names(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]


def _write(
    path: Path, cases: Sequence[Case], names: Sequence[str], probability: np.ndarray
) -> None:
    table = pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "patient_id": [case.patient_id for case in cases],
            "class": [names[_class(case, names)] for case in cases],
            **{f"p_{name}": probability[:, index] for index, name in enumerate(names)},
        }
    )
    with paths.atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)
