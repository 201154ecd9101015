"""`mg3d scale`: what more data and a wider encoder bring, for equally many steps.

Cells are runs as in `mg3d.experiments.ablate`: (width, share of the training studies, seed). The
studies of a smaller share are among those of a larger one. ``out/scale-<digest>`` holds the same
files as an ablation's folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import fingerprint, paths, tracking
from mg3d.experiments import tables
from mg3d.experiments.ablate import CODE, K, metrics_of
from mg3d.experiments.files import TABLE, TABLE_CSV, digest, kept, publish, save_figure
from mg3d.experiments.measure import measure, read_studies
from mg3d.experiments.run import Cell, fingerprint_of, resumable, run_cells
from mg3d.metrics import probe
from mg3d.metrics.power_law import PowerLaw, fit_power_law
from mg3d.metrics.retrieval import chance_recall_at
from mg3d.params import Params, save_params

Key = tuple[int, float, int]  # embed_dim, train_fraction, seed

#: Validation losses that get a curve.
LOSSES = {
    "loss/paper_total": "total of the paper's terms",
    "validation/mim": "MIM loss",
    "validation/mlm": "MLM loss",
}
RECALL = f"probe/recall_at_{K}"


def cells(params: Params) -> dict[Key, Cell]:
    """The runs by (width, share of the studies, seed)."""
    num_steps = params.scale.num_steps or params.pretrain.num_steps
    found = {}
    for embed_dim in params.scale.embed_dims:
        vision = params.model.vision.of_width(embed_dim)
        model = params.model.model_copy(update={"vision": vision})
        for fraction in params.scale.train_fractions:
            for seed in params.scale.seeds:
                changes = {"seed": seed, "num_steps": num_steps, "train_fraction": fraction}
                pretrain = params.pretrain.model_copy(update=changes)
                changed = params.model_copy(update={"model": model, "pretrain": pretrain})
                name = f"embed_dim {embed_dim}, {fraction:g} of the studies, seed {seed}"
                found[embed_dim, fraction, seed] = Cell(name, changed)
    return found


def scale(prepared: Path, out: Path, params: Params) -> Path:
    """Run and measure every cell; return ``result.json``. A finished one returns at once.

    Raises ValueError if a share of the studies is smaller than a batch; otherwise as an ablation.
    """
    planned = cells(params)
    num_train = num_studies(prepared, params)
    inputs = {
        "cells": {cell.name: fingerprint_of(prepared, cell.params).digest
                  for cell in planned.values()},
        "scale": params.scale.model_dump(mode="json", exclude={"num_parallel"}),
        "code": fingerprint.code(CODE),
    }  # fmt: skip
    folder = out / f"scale-{digest(inputs)}"
    if (folder / paths.RESULT).exists():
        return folder / paths.RESULT
    save_params(params, folder / paths.RUN_PARAMS)
    with resumable(), tracking.track(folder, "scale", params) as tracked:
        checkpoints = run_cells(
            list(planned.values()), prepared, out, folder, params.scale.num_parallel
        )
        studies = read_studies(prepared, folder, params.contract, params.model.text)
        found: dict[Key, dict[str, Any]] = {}
        for key, checkpoint in zip(planned, checkpoints, strict=True):
            cell = planned[key].params
            found[key] = kept(
                folder / "cells" / "{}-{:g}-{}.json".format(*key),
                lambda checkpoint=checkpoint, cell=cell: {  # type: ignore[misc]
                    **measure(checkpoint, studies, cell.model, cell.objective, cell.pretrain),
                    "encoder_parameters": encoder_parameters(cell),
                },
            )
        result = summarise(found, num_train, studies.patient_ids, params)
        result["inputs"] = inputs
        write(folder, result)
        publish(folder, result, result["rows"], tracked)
    return folder / paths.RESULT


def num_studies(prepared: Path, params: Params) -> dict[float, int]:
    """Training studies of each share. Raises ValueError if one cannot fill a batch."""
    from mg3d.data.pairs import Pairs
    from mg3d.training.order import nested_subset

    study_ids = Pairs(prepared, "train", params.contract).study_ids
    found = {
        fraction: len(nested_subset(params.pretrain.seed, study_ids, fraction))
        for fraction in params.scale.train_fractions
    }
    for fraction, num in found.items():
        if num < params.pretrain.batch_size:
            raise ValueError(
                f"scale.train_fractions {fraction:g} of {len(study_ids)} training studies is {num},"
                f" fewer than pretrain.batch_size {params.pretrain.batch_size}: use a larger share "
                "or a smaller batch"
            )
    return found


def encoder_parameters(params: Params) -> int:
    """Of the vision encoder."""
    from mg3d.models.vision import vision_encoder

    return sum(p.numel() for p in vision_encoder(params.model.vision).parameters())


def summarise(
    found: Mapping[Key, Mapping[str, Any]],
    num_train: Mapping[float, int],
    patient_ids: list[str],
    params: Params,
) -> dict[str, Any]:
    """A row for each width and share, and a curve for each width and loss."""
    section = params.scale
    pooled_patients = [patient for _ in section.seeds for patient in patient_ids]
    rows, curves = [], []
    for embed_dim in section.embed_dims:
        points: dict[str, list[tuple[float, float]]] = {key: [] for key in LOSSES}
        for fraction in section.train_fractions:
            cells_ = [found[embed_dim, fraction, seed] for seed in section.seeds]
            values = [metrics_of(cell) for cell in cells_]
            keys = list(dict.fromkeys(key for each in values for key in each))
            hits = np.concatenate(
                [
                    probe.hits_at({way: np.array(r) for way, r in cell["probe"].items()}, K)
                    for cell in cells_
                ]
            )
            rows.append(
                {
                    "embed_dim": embed_dim,
                    "encoder_parameters": cells_[0]["encoder_parameters"],
                    "train_fraction": fraction,
                    "num_train": num_train[fraction],
                    "metrics": {
                        key: tables.over_seeds([each.get(key) for each in values]) for key in keys
                    },
                    f"probe_recall_at_{K}": tables.as_json(
                        probe.recall_estimate(hits, pooled_patients, section.num_bootstrap)
                    ),
                }
            )
            for key, found_points in points.items():
                found_points += [(num_train[fraction], v[key]) for v in values if key in v]
        curves += [
            _curve(embed_dim, key, np.array(found_points))
            for key, found_points in points.items()
            if found_points
        ]
    return {
        "seeds": list(section.seeds),
        "num_steps": section.num_steps or params.pretrain.num_steps,
        "num_validation": len(patient_ids),
        "chance": {RECALL: chance_recall_at(K, np.ones(len(patient_ids)), len(patient_ids))},
        "rows": rows,
        "curves": curves,
    }


def _curve(embed_dim: int, key: str, points: np.ndarray) -> dict[str, Any]:
    law = fit_power_law(points[:, 0], points[:, 1])
    return {
        "embed_dim": embed_dim,
        "metric": key,
        "points": points.tolist(),
        "formula": law.formula,
        "floor": law.floor,
        "scale": law.scale,
        "exponent": law.exponent,
        "residuals": list(law.residuals),
        "note": law.note,
    }


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """``table.md``, ``table.csv`` and the figure."""
    from mg3d.figures.experiments import curves_by_size

    with paths.atomic_write(folder / TABLE) as temporary:
        temporary.write_text(markdown(result))
    about = ("embed_dim", "encoder_parameters", "train_fraction", "num_train")
    tables.write_csv(
        folder / TABLE_CSV,
        [
            {
                **{name: row[name] for name in about},
                "metric": key,
                **tables.csv_columns("", values, result["seeds"]),
            }
            for row in result["rows"]
            for key, values in row["metrics"].items()
        ],
    )
    points: dict[str, dict[str, np.ndarray]] = {}
    fits: dict[str, dict[str, Any]] = {}
    for curve in result["curves"]:
        measure_, model = LOSSES[curve["metric"]], f"embed_dim {curve['embed_dim']}"
        points.setdefault(measure_, {})[model] = np.array(curve["points"])
        law = PowerLaw(curve["floor"], curve["scale"], curve["exponent"], (), curve["note"])
        fits.setdefault(measure_, {})[model] = (curve["formula"], law)
    recall: dict[str, list[tuple[float, float]]] = {}
    for row in result["rows"]:
        values = row["metrics"][RECALL]["values"]
        recall.setdefault(f"embed_dim {row['embed_dim']}", []).extend(
            (row["num_train"], value) for value in values
        )
    points[f"probe recall@{K}"] = {model: np.array(found) for model, found in recall.items()}
    save_figure(folder / paths.FIGURES / "scaling.png", curves_by_size(points, fits))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables that a person reads."""
    shown = [key for key in LOSSES if any(key in row["metrics"] for row in result["rows"])]
    body = []
    for row in result["rows"]:
        recall = tables.interval(row[f"probe_recall_at_{K}"])
        body.append([
            str(row["embed_dim"]), f"{row['encoder_parameters']:,}", str(row["num_train"]),
            *(tables.spread(row["metrics"].get(key)) for key in shown), recall,
        ])  # fmt: skip
    fits = [
        [
            str(curve["embed_dim"]),
            LOSSES[curve["metric"]],
            curve["formula"],
            ", ".join(tables.number(value, signed=True) for value in curve["residuals"]),
            curve["note"],
        ]
        for curve in result["curves"]
    ]
    head = ["embed_dim", "encoder parameters", "training studies"]
    return "\n".join(
        [
            "# What do more data and a wider encoder bring?\n",
            f"{result['num_steps']} steps for every cell, seeds "
            f"{', '.join(map(str, result['seeds']))}; losses and the linear probe's recall@{K} "
            f"(95 % interval by patient, chance {tables.number(result['chance'][RECALL])}) on "
            f"{result['num_validation']} validation studies. The probe is fitted on all training "
            "studies.\n",
            tables.markdown([*head, *(LOSSES[key] for key in shown), f"probe recall@{K}"], body),
            "## Curves over the number n of training studies\n",
            tables.markdown(["embed_dim", "loss", "fit", "residuals", "of"], fits),
        ]
    )
