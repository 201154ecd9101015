"""Kind: binary labels per volume, one or a panel, some of which apply to some cases only.

``frozen`` is a linear probe; ``finetune`` and ``scratch`` train the encoder too; ``zero_shot`` and
``prompt_tuned`` ask the model's own dual encoder (`mg3d.finetuning.prompting`). A label that is
None for a case (severity without COVID) enters neither the loss nor a metric. Thresholds are
chosen on validation predictions, which are files like those of test, and stored beside them.

Primary: one reconstruction per scan. Where scans have several, ``all_volumes_*`` score every
reconstruction, as the literature on CT-RATE does. Nulls: ``prevalence``, one probability for all;
``random_encoder``, a probe on an untrained encoder that stays frozen (asked by prompts where the
mode does): the same procedure as ``frozen``, and not that of ``finetune``, whose is ``scratch``.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
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
from mg3d.finetuning.images import packed_cases
from mg3d.finetuning.probe import Predicted, fitted
from mg3d.finetuning.prompting import prompted
from mg3d.finetuning.selection import choose
from mg3d.finetuning.task import Case, OnMetrics, Scores, Split
from mg3d.ledger import Ledger, Reason
from mg3d.metrics.bootstrap import Estimate, estimates, unavailable
from mg3d.metrics.classification import (
    CRG_FLOOR,
    auroc,
    average_precision,
    best_f1_threshold,
    brier,
    calibration_error,
    crg,
    f1,
    weighted_f1,
)
from mg3d.params import Finetune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "classification"
MODEL, NULLS = "model", ("prevalence", "random_encoder")
THRESHOLDS = "thresholds.csv"
MIN_PER_CLASS = 3
PANEL = 3  # labels from which on their co-occurrence is drawn, and no decision curves
OF_PROBABILITY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "brier": brier,
    "calibration_error": calibration_error,
}
OF_CALLS = {"f1": f1, "ct_clip_weighted_f1": weighted_f1}


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
    """Write ``<system>.csv`` and ``<system>_validation.csv`` for the model and each null, and the
    thresholds (see `Kind.predict`).

    Raises ValueError for a mode that asks the dual encoder of a model without one.
    """
    names = sorted({name for cases in split.values() for case in cases for name in case.labels})
    labels = partial(_tensor, names=names)
    if params.mode == "zero_shot":
        for case in split["train"]:
            ledger.quarantine(case.case_id, Reason.NOT_IN_SPLIT, "zero_shot trains nothing")
        split["train"] = []
    predicted: dict[str, Predicted] = {}
    heads: list[nn.Module] = []
    with ExitStack() as open_volumes:
        if params.mode in ("zero_shot", "prompt_tuned"):
            pair, provenance = prompted(
                split, checkpoint, names, labels, masked_loss, params, ledger, on_metrics, prefix,
                heads.append,
            )  # fmt: skip
            predicted = dict(zip((MODEL, "random_encoder"), pair, strict=True))
        else:
            encoder, contract, provenance = starting_encoder(checkpoint, params)
            untrained = random_encoder(checkpoint, params.seed + 1)
            volumes = open_volumes.enter_context(packed_cases(split, contract, ledger))
            for system, start, frozen, report, name in (
                (MODEL, encoder, params.mode == "frozen", on_metrics, prefix),
                ("random_encoder", untrained, True, _silent, f"{prefix}/random_encoder"),
            ):
                logits = fitted(
                    start, frozen, split, volumes, labels, len(names), masked_loss, params,
                    report, name, heads.append if system == MODEL else None,
                )  # fmt: skip
                predicted[system] = lambda part, logits=logits: _sigmoid(logits(part))  # type: ignore[misc]
        # Without training cases (zero_shot) the prevalence is that of validation.
        known = _labels(split["train"] or split["validation"], names)
        # One extra case of each class, so that no probability is 0 or 1 (Laplace).
        prevalence = (np.nansum(known, axis=0) + 1) / ((~np.isnan(known)).sum(axis=0) + 2)
        predicted["prevalence"] = lambda part: np.tile(prevalence, (len(split[part]), 1))
        thresholds = []
        for system, of_part in predicted.items():
            path = predictions / f"{system}_validation.csv"
            _write(path, split["validation"], names, of_part("validation"))
            thresholds += choose_thresholds(system, pd.read_csv(path))
        with paths.atomic_write(predictions / THRESHOLDS) as temporary:
            pd.DataFrame(thresholds).to_csv(temporary, index=False)
        cuts = {row["label"]: row["threshold"] for row in thresholds if row["system"] == MODEL}
        chosen = {k: None if np.isnan(cut) else float(cut) for k, cut in cuts.items()}
        choose(thresholds=chosen)
        keep_fitted(
            predictions, heads[0], task=prefix, kind=NAME, params=params,
            contract_digest=provenance["contract_digest"], labels=names, thresholds=chosen,
        )  # fmt: skip
        for system, of_part in predicted.items():  # opens the test split
            rows = of_part("test")
            _write(predictions / f"{system}.csv", split["test"], names, rows)
    return provenance


def choose_thresholds(system: str, validation: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per label: the threshold of the largest F1 on validation, or why there is none."""
    rows = []
    for name in _names(validation):
        applies = validation[validation[name].notna() & validation["primary"].astype(bool)]
        label = applies[name].to_numpy()
        threshold = best_f1_threshold(label, applies[f"p_{name}"].to_numpy())
        reason = ""
        if np.isnan(threshold):
            reason = (
                f"validation has {int((label == 1).sum())} positive and "
                f"{int((label == 0).sum())} negative cases: no threshold"
            )
        rows.append({"system": system, "label": name, "threshold": threshold, "reason": reason})
    return rows


def score(predictions: Path, params: Finetune) -> Scores:
    """Each label's scores over the cases it applies to, their means over labels, CRG."""
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    stored = pd.read_csv(predictions / THRESHOLDS, keep_default_na=False, na_values=["", "nan"])
    thresholds = {name: stored[stored["system"] == name].set_index("label") for name in tables}
    table = tables[MODEL]
    primary = table[table["primary"]]
    counts: dict[str, float] = {"test_cases": len(table), "test_scans": len(primary)}
    for name in _names(table):
        counts[f"{name}_applies"] = int(primary[name].notna().sum())
        counts[f"{name}_positive"] = int((primary[name] == 1).sum())
        counts[f"{name}_threshold"] = float(thresholds[MODEL].loc[name, "threshold"])
    enough = [name for name in _names(table) if _shortage(primary[name]) is None]
    counts["labels_in_means"] = len(enough)
    counts["labels_skipped"] = len(_names(table)) - len(enough)
    counts = {name: value for name, value in counts.items() if not np.isnan(value)}
    return Scores(
        metrics=_metrics(table, thresholds[MODEL], params),
        nulls={name: _metrics(tables[name], thresholds[name], params) for name in NULLS},
        counts=counts,
        notes=(
            "labels are scored on the cases they apply to only (severity: COVID-positives)",
            f"a metric needs {MIN_PER_CLASS} test cases of each class; means over labels leave out "
            f"{len(_names(table)) - len(enough)} of {len(_names(table))} labels for that",
            "F1 and CRG call at the threshold of the largest F1 on validation predictions",
            "ct_clip_weighted_f1 is dominated by the negatives and looks far higher than F1",
            f"CRG: calling every cell or none gives {CRG_FLOOR:.3f}, its floor; all wrong 0.2",
        ),
    )


def draw(predictions: Path, params: Finetune) -> "dict[str, Figure]":
    """``roc_``, ``pr_`` and ``calibration_<label>``; ``decision_curve_<label>``, or for a panel of
    labels ``co_occurrence``."""
    drawn = {}
    tables = {name: pd.read_csv(predictions / f"{name}.csv") for name in (MODEL, *NULLS)}
    tables = {name: table[table["primary"]] for name, table in tables.items()}
    names = _names(tables[MODEL])
    for name in names:
        curves = {}
        for system, table in tables.items():
            applies = table[table[name].notna()]
            curves[system] = (applies[name].to_numpy(), applies[f"p_{name}"].to_numpy())
        file = name.lower().replace(" ", "_")
        drawn[f"roc_{file}"] = figures.roc(curves, name)
        drawn[f"pr_{file}"] = figures.precision_recall(curves, name)
        drawn[f"calibration_{file}"] = figures.calibration(curves, name)
        if len(names) < PANEL:
            drawn[f"decision_curve_{file}"] = figures.decision_curve(curves, name)
    if len(names) >= PANEL:
        stored = pd.read_csv(predictions / THRESHOLDS)
        cut = stored[stored["system"] == MODEL].set_index("label")["threshold"]
        table = tables[MODEL]
        called = np.array([table[f"p_{name}"] >= cut[name] for name in names]).T
        reference = np.array([table[name] == 1 for name in names]).T
        drawn["co_occurrence"] = figures.co_occurrence(reference, called, names)
    return drawn


def _metrics(
    table: pd.DataFrame, thresholds: pd.DataFrame, params: Finetune
) -> dict[str, Estimate]:
    """By name; ``mean_*`` over labels with enough cases of both classes, if there are several."""
    found = _of_volumes(table[table["primary"]], thresholds, params)
    if not table["primary"].all():
        found |= {
            f"all_volumes_{name}": value
            for name, value in _of_volumes(table, thresholds, params).items()
            if name.startswith("mean_") or name == "crg"
        }
    return found


def _of_volumes(
    table: pd.DataFrame, thresholds: pd.DataFrame, params: Finetune
) -> dict[str, Estimate]:
    names = _names(table)
    metrics = (*OF_PROBABILITY, *OF_CALLS)
    shortage = {name: _shortage(table[name]) for name in names}
    enough = [name for name in names if shortage[name] is None]
    label = table[enough].to_numpy(float)
    probability = table[[f"p_{name}" for name in enough]].to_numpy(float)
    cut = thresholds.loc[enough, "threshold"].to_numpy(float)
    called = np.where(np.isnan(cut), np.nan, probability >= cut)

    def statistics(rows: np.ndarray) -> np.ndarray:
        """Labels x metrics, then their means over labels, then CRG."""
        values = np.full((len(enough), len(metrics)), np.nan)
        for place in range(len(enough)):
            chosen = rows[~np.isnan(label[rows, place])]
            y, p, c = label[chosen, place], probability[chosen, place], called[chosen, place]
            if not 0 < y.sum() < len(y):  # a resample without both classes
                continue
            for column, metric in enumerate(OF_PROBABILITY.values()):
                values[place, column] = metric(y, p)
            if not np.isnan(cut[place]):
                for column, of_calls in enumerate(OF_CALLS.values(), len(OF_PROBABILITY)):
                    values[place, column] = of_calls(y, c)
        cells = ~np.isnan(label[rows]) & ~np.isnan(called[rows])
        gain = crg(label[rows][cells], called[rows][cells])
        return np.concatenate([values.ravel(), _column_means(values), [gain]])

    keys = [f"{name}_{metric}" for name in enough for metric in metrics]
    keys += [f"mean_{metric}" for metric in metrics] + ["crg"]
    undefined = "no label has enough test cases of both classes, and a threshold where one is used"
    values = estimates(
        statistics,
        table["patient_id"].tolist(),
        num_statistics=len(keys),
        num_resamples=params.num_bootstrap,
        seed=params.seed,
        undefined=undefined,
    )
    known = dict(zip(keys, values, strict=True))
    found = {}
    for name in names:
        for metric in metrics:
            why = shortage[name]
            if why is None and metric in OF_CALLS and np.isnan(thresholds.loc[name, "threshold"]):
                why = str(thresholds.loc[name, "reason"])
            found[f"{name}_{metric}"] = unavailable(why) if why else known[f"{name}_{metric}"]
    if len(names) > 1:
        found |= {f"mean_{metric}": known[f"mean_{metric}"] for metric in metrics}
    return found | {"crg": known["crg"]}


def _column_means(values: np.ndarray) -> np.ndarray:
    """Means over labels where defined, [M]; NaN for a column without any."""
    defined = ~np.isnan(values)
    count = defined.sum(0)
    return np.where(count, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _shortage(label: pd.Series) -> str | None:
    """Why a label cannot be scored, or None."""
    positive, negative = int((label == 1).sum()), int((label == 0).sum())
    if min(positive, negative) >= MIN_PER_CLASS:
        return None
    return (
        f"{positive} positive and {negative} negative test cases: {MIN_PER_CLASS} of each are "
        "needed"
    )


def _labels(cases: Sequence[Case], names: Sequence[str]) -> np.ndarray:
    """float32 [N, K], NaN where a label does not apply."""
    return np.array(
        [
            [np.nan if case.labels.get(name) is None else case.labels[name] for name in names]
            for case in cases
        ],
        dtype=np.float32,
    ).reshape(len(cases), len(names))


def _tensor(cases: Sequence[Case], names: Sequence[str]) -> Tensor:
    return torch.from_numpy(_labels(cases, names))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).sigmoid().numpy()


def _silent(step: int, metrics: dict[str, float]) -> None:
    """Nobody watches a baseline learn."""


def _write(
    path: Path, cases: Sequence[Case], names: Sequence[str], probability: np.ndarray
) -> None:
    first: dict[str, str] = {}  # reconstruction of a scan
    for case in cases:
        scan = case.scan_id or case.case_id
        first[scan] = min(case.case_id, first.get(scan, case.case_id))
    table = pd.DataFrame(
        {
            "case_id": [case.case_id for case in cases],
            "patient_id": [case.patient_id for case in cases],
            "primary": [first[case.scan_id or case.case_id] == case.case_id for case in cases],
            **dict(zip(names, _labels(cases, names).T, strict=True)),
            **{f"p_{name}": probability[:, index] for index, name in enumerate(names)},
        }
    )
    table["primary"] = table["primary"].astype(bool)
    with paths.atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)


def _names(table: pd.DataFrame) -> list[str]:
    return [column.removeprefix("p_") for column in table.columns if column.startswith("p_")]
