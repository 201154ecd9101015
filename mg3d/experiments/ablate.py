"""`mg3d ablate`: does each term help? The objective's terms, added one by one, over seeds.

A cell (rung, seed) is an ordinary pre-training run in ``out`` under its own fingerprint; finished
ones are found, an interrupted one goes on. ``out/ablate-<digest>`` holds the measurements of each
cell, then ``table.md``, ``table.csv``, ``figures/`` and, last, ``result.json``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import fingerprint, launch, paths, tracking
from mg3d.experiments import tables
from mg3d.experiments.files import TABLE, TABLE_CSV, digest, kept, publish, save_figure, slug
from mg3d.experiments.measure import Studies, measure, read_studies, untrained_probe
from mg3d.experiments.run import Cell, fingerprint_of, resumable, run_cells
from mg3d.metrics import probe
from mg3d.metrics.bootstrap import Estimate
from mg3d.metrics.retrieval import chance_recall_at
from mg3d.params import Objective, Params, save_params

CODE = ("experiments", "metrics", "figures")
TERMS = ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")
BASE = "MIM+MLM"
ADDED = {"+SFR": "sfr", "+CML": "cml", "+SSM": "ssm", "+DFA": "dfa", "+ITC (ours)": "itc"}
K = 5
UNTRAINED = "untrained encoder"

#: The columns of the table: key -> (heading, the terms of which one must have a weight).
SHOWN: dict[str, tuple[str, tuple[str, ...]]] = {
    f"probe/recall_at_{K}": (f"probe recall@{K}", ()),
    "probe/median_rank": ("probe median rank", ()),
    "validation/mim": ("MIM loss", ("mim",)),
    "validation/mlm": ("MLM loss", ("mlm",)),
    "validation/mlm_accuracy": ("MLM accuracy", ("mlm",)),
    "validation/cml_recall_at_1": ("CML recall@1", ("cml",)),
    "validation/image_to_text_recall_at_5": ("dual encoder recall@5, image to text", ("itc",)),
    "validation/image_effective_rank": ("image effective rank", ("cml", "itc")),
    "validation/text_effective_rank": ("text effective rank", ("cml", "itc")),
}


def rungs(objective: Objective) -> dict[str, Objective]:
    """The objective of each rung, in order: MIM+MLM, then one term more each time.

    Weights are the file's; a term whose weight there is 0 has no rung. Raises ValueError if the
    base has no weight.
    """
    if not (objective.mlm_weight or objective.mim_weight):
        raise ValueError(
            "the ablation starts from MIM+MLM and both weights are 0: give objective.mim_weight or "
            "objective.mlm_weight a value"
        )
    weights = {f"{term}_weight": 0.0 for term in TERMS}
    for term in ("mlm", "mim"):
        weights[f"{term}_weight"] = getattr(objective, f"{term}_weight")
    found = {BASE: Objective.model_validate(objective.model_dump() | weights)}
    for name, term in ADDED.items():
        if weight := getattr(objective, f"{term}_weight"):
            weights[f"{term}_weight"] = weight
            found[name] = Objective.model_validate(objective.model_dump() | weights)
    return found


def cells(params: Params) -> dict[tuple[str, int], Cell]:
    """The runs by (rung, seed), rung by rung."""
    num_steps = params.ablate.num_steps or params.pretrain.num_steps
    found = {}
    for rung, objective in rungs(params.objective).items():
        for seed in params.ablate.seeds:
            pretrain = params.pretrain.model_copy(update={"seed": seed, "num_steps": num_steps})
            changed = params.model_copy(update={"objective": objective, "pretrain": pretrain})
            found[rung, seed] = Cell(f"{rung}, seed {seed}", changed)
    return found


def ablate(prepared: Path, out: Path, params: Params) -> Path:
    """Run and measure every cell; return ``result.json``. A finished ablation returns at once.

    It takes the whole params file, as each cell is one. Raises ValueError for what a cell cannot
    run with; SystemExit with RESUMABLE after SIGTERM.
    """
    planned = cells(params)
    inputs = {
        "cells": {cell.name: fingerprint_of(prepared, cell.params).digest
                  for cell in planned.values()},
        "ablate": params.ablate.model_dump(mode="json", exclude={"num_parallel"}),
        "downstream": {name: params.downstream.task(name).digest() for name in params.ablate.tasks},
        "code": fingerprint.code(CODE),
    }  # fmt: skip
    folder = out / f"ablate-{digest(inputs)}"
    if (folder / paths.RESULT).exists():
        return folder / paths.RESULT
    save_params(params, folder / paths.RUN_PARAMS)
    with resumable(), tracking.track(folder, "ablate", params) as tracked:
        checkpoints = run_cells(
            list(planned.values()), prepared, out, folder, params.ablate.num_parallel
        )
        studies = read_studies(prepared, folder, params.contract, params.model.text)
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for (rung, seed), checkpoint in zip(planned, checkpoints, strict=True):
            cell = planned[rung, seed].params
            found[rung, seed] = kept(
                folder / "cells" / f"{slug(rung)}-{seed}.json",
                lambda checkpoint=checkpoint, cell=cell: {  # type: ignore[misc]
                    **measure(checkpoint, studies, cell.model, cell.objective, cell.pretrain),
                    "tasks": evaluate_tasks(checkpoint, cell, params.ablate.tasks),
                },
            )
        for seed in params.ablate.seeds:
            found[UNTRAINED, seed] = kept(
                folder / "cells" / f"untrained-{seed}.json",
                lambda seed=seed: {"probe": untrained_probe(params.model, seed, studies)},  # type: ignore[misc]
            )
        result = summarise(found, rungs(params.objective), studies.patient_ids, params)
        result["inputs"] = inputs
        write(folder, result, studies)
        publish(folder, result, result["rungs"].values(), tracked)
    return folder / paths.RESULT


def evaluate_tasks(checkpoint: Path, params: Params, tasks: Sequence[str]) -> dict[str, Any]:
    """Headline of each downstream task on a cell, as `mg3d evaluate` has it, or why there is none.

    Each is a child process: its own seed, device and crash.
    """
    run = checkpoint.parent.parent
    found: dict[str, Any] = {}
    for task in tasks:
        try:
            params.downstream_tasks([task])
        except ValueError as error:
            found[task] = {"value": None, "reason": str(error)}
            continue
        section = params.downstream.task(task)
        out = paths.cell_folder(run, task, section.mode, section.seed)
        flags = ["--task", task, "--out", str(out)]
        flags += ["--params", str(run / paths.RUN_PARAMS)]
        result = launch.run([sys.executable, "-m", "mg3d.cli", "evaluate", str(checkpoint), *flags])
        headline = json.loads(Path(result).read_text())["headline"]
        found[task] = {key: headline.get(key) for key in ("name", "value", "interval", "reason")}
    return found


def metrics_of(cell: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one cell's measurements under flat names."""
    ranks = {way: np.array(found) for way, found in cell["probe"].items()}
    found = {
        f"probe/recall_at_{K}": float(probe.hits_at(ranks, K).mean()),
        "probe/median_rank": float(np.median(np.stack(list(ranks.values())))),
    }
    for way, rank in ranks.items():
        found[f"probe/{way}_recall_at_{K}"] = float((rank <= K).mean())
        found[f"probe/{way}_median_rank"] = float(np.median(rank))
    for part in ("validation", "loss"):
        found |= {f"{part}/{name}": value for name, value in cell.get(part, {}).items()}
    for task, headline in cell.get("tasks", {}).items():
        if headline["value"] is not None:
            found[f"{task}/{headline['name']}"] = headline["value"]
    return found


def summarise(
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    objectives: Mapping[str, Objective],
    patient_ids: Sequence[str],
    params: Params,
) -> dict[str, Any]:
    """All that the tables say, from the cells' measurements by (rung, seed).

    ``difference`` is to the rung before with the same seed. The probe's estimates pool the seeds;
    their intervals resample patients.
    """
    seeds, num_resamples = params.ablate.seeds, params.ablate.num_bootstrap
    chance = chance_recall_at(K, np.ones(len(patient_ids)), len(patient_ids))
    pooled_patients = [patient for _ in seeds for patient in patient_ids]

    def pooled(rung: str) -> dict[str, np.ndarray]:
        return {
            way: np.concatenate([np.array(found[rung, seed]["probe"][way]) for seed in seeds])
            for way in probe.WAYS
        }

    rows: dict[str, Any] = {}
    before: str | None = None
    for rung in (*objectives, UNTRAINED):
        by_seed = {seed: metrics_of(found[rung, seed]) for seed in seeds}
        keys = list(dict.fromkeys(key for values in by_seed.values() for key in values))
        ranks = pooled(rung)
        hits = probe.hits_at(ranks, K)
        row: dict[str, Any] = {
            "metrics": {
                key: tables.over_seeds([by_seed[seed].get(key) for seed in seeds]) for key in keys
            },
            f"probe_recall_at_{K}": tables.as_json(
                probe.recall_estimate(hits, pooled_patients, num_resamples)
            ),
            "probe_median_rank": tables.as_json(
                probe.median_rank_estimate(ranks, pooled_patients, num_resamples)
            ),
        }
        if rung in objectives:
            row["weights"] = {
                term: getattr(objectives[rung], f"{term}_weight")
                for term in TERMS
                if getattr(objectives[rung], f"{term}_weight")
            }
            row["falls"] = {seed: found[rung, seed]["falls"] for seed in seeds}
            row["tasks"] = {seed: found[rung, seed].get("tasks", {}) for seed in seeds}
        if before is not None and rung in objectives:
            earlier = {seed: metrics_of(found[before, seed]) for seed in seeds}
            row["difference"] = {
                key: tables.over_seeds(
                    [
                        by_seed[seed][key] - earlier[seed][key]
                        if key in by_seed[seed] and key in earlier[seed]
                        else None
                        for seed in seeds
                    ]
                )
                for key in keys
            }
            gain = probe.recall_estimate(
                hits - probe.hits_at(pooled(before), K), pooled_patients, num_resamples
            )
            row["probe_gain"] = {**tables.as_json(gain), "reading": reading(gain)}
        if rung in objectives:
            before = rung
        rows[rung] = row
    return {
        "seeds": list(seeds),
        "num_steps": params.ablate.num_steps or params.pretrain.num_steps,
        "num_validation": len(patient_ids),
        "num_patients": len(set(patient_ids)),
        "chance": {
            f"probe/recall_at_{K}": chance,
            "probe/median_rank": (len(patient_ids) + 1) / 2,
        },
        "rungs": {rung: rows[rung] for rung in objectives},
        "nulls": {UNTRAINED: rows[UNTRAINED]},
    }


def reading(gain: Estimate) -> str:
    """What an interval of a gain allows to say."""
    if gain.interval is None:
        return "unclear"
    low, high = gain.interval
    return "helps" if low > 0 else "does not: it hurts" if high < 0 else "unclear"


def write(folder: Path, result: Mapping[str, Any], studies: Studies) -> None:
    """``table.md``, ``table.csv`` and the figures."""
    from mg3d.figures.experiments import dots_by_rung
    from mg3d.figures.pretraining import loss_curves
    from mg3d.training.pretrain import METRICS, PREFIX
    from mg3d.training.record import loss_history, read_metrics

    text, rows = markdown(result), csv_rows(result)
    with paths.atomic_write(folder / TABLE) as temporary:
        temporary.write_text(text)
    tables.write_csv(folder / TABLE_CSV, rows)
    shown = {
        heading: {
            rung: row["metrics"].get(key, {"values": []})["values"]
            for rung, row in result["rungs"].items()
        }
        for key, (heading, _) in SHOWN.items()
    }
    nulls = {SHOWN[key][0]: value for key, value in result["chance"].items()}
    save_figure(folder / paths.FIGURES / "ablation.png", dots_by_rung(shown, nulls))
    last = list(result["rungs"])[-1]
    curves: dict[str, dict[str, np.ndarray]] = {}
    for seed in result["seeds"]:
        cell = json.loads((folder / "cells" / f"{slug(last)}-{seed}.json").read_text())
        history = loss_history(read_metrics(folder.parent / cell["run"] / METRICS), PREFIX)
        for term, found in history.items():
            curves.setdefault(term, {})[f"seed {seed}"] = found["train"]
    save_figure(folder / paths.FIGURES / "losses.png", loss_curves(curves))


def markdown(result: Mapping[str, Any]) -> str:
    """The tables that a person reads."""
    seeds, all_rungs = result["seeds"], result["rungs"]
    heads = [key for key in SHOWN if any(key in row["metrics"] for row in all_rungs.values())]
    extra = sorted({key for row in all_rungs.values() for key in row["metrics"]
                    if key.split("/")[0] not in ("probe", "validation", "loss")})  # fmt: skip
    parts = [
        "# Does each term help?\n",
        f"{result['num_steps']} steps, seeds {', '.join(map(str, seeds))}; "
        f"{result['num_validation']} validation studies of {result['num_patients']} patients. "
        "Each cell: mean ± standard deviation over seeds.\n",
    ]
    body = []
    for rung, row in (all_rungs | result["nulls"]).items():
        cells_ = [tables.spread(row["metrics"].get(key)) for key in (*heads, *extra)]
        body.append([rung, *cells_])
    chance = [tables.number(result["chance"].get(key)) for key in (*heads, *extra)]
    body.append(["chance", *chance])
    parts.append(tables.markdown(["", *(SHOWN[k][0] for k in heads), *extra], body))
    parts.append(reasons(result, heads))

    parts.append(f"## Linear probe: recall@{K}, both ways, seeds pooled\n")
    parts.append(
        "Frozen image features → report features by ridge regression fitted on the training "
        "split. Intervals (95 %) resample patients: they say nothing of other seeds. "
        "The reading is that interval's.\n"
    )
    body = []
    for rung, row in (all_rungs | result["nulls"]).items():
        gain = row.get("probe_gain")
        body.append([
            rung, tables.interval(row[f"probe_recall_at_{K}"]),
            tables.interval(row["probe_median_rank"]),
            tables.interval(gain, signed=True) if gain else "–", gain["reading"] if gain else "–",
        ])  # fmt: skip
    parts.append(
        tables.markdown(
            ["", f"recall@{K}", "median rank", "gain over the rung before", "reading"], body
        )
    )

    parts.append("## Difference to the rung before, by seed\n")
    body = []
    for rung, row in all_rungs.items():
        for key in heads:
            difference = row.get("difference", {}).get(key)
            if difference and difference["n"]:
                values = [tables.number(value, signed=True) for value in difference["values"]]
                body.append([rung, SHOWN[key][0], *values, tables.spread(difference, signed=True)])
    parts.append(tables.markdown(["", "metric", *(f"seed {s}" for s in seeds), "mean ± sd"], body))

    last = list(all_rungs)[-1]
    parts.append(f"## Does each loss fall? Training losses of {last}\n")
    parts.append("Mean over the first and over the last tenth of the reported steps.\n")
    by_seed = all_rungs[last]["falls"]
    body = []
    for term in by_seed[seeds[0]]:
        ends = [by_seed[seed][term] for seed in seeds]
        shown = [f"{tables.number(first)} → {tables.number(after)}" for first, after in ends]
        falling = sum(after < first for first, after in ends)
        body.append([term, *shown, f"{falling} of {len(ends)}"])
    parts.append(tables.markdown(["loss", *(f"seed {s}" for s in seeds), "falls in"], body))
    return "\n".join(parts)


def reasons(result: Mapping[str, Any], heads: Sequence[str]) -> str:
    """Why a column has a dash, one line each."""
    lines = []
    for key in heads:
        heading, terms = SHOWN[key]
        for rung, row in result["rungs"].items():
            if key in row["metrics"]:
                continue
            why = "too few validation studies"
            if terms and not set(terms) & set(row["weights"]):
                why = "trains no " + " or ".join(term.upper() for term in terms)
            lines.append((why, heading, rung))
    grouped: dict[tuple[str, str], list[str]] = {}
    for why, heading, rung in lines:
        grouped.setdefault((heading, why), []).append(rung)
    text = [f"- – {heading}: {', '.join(names)} {why}" for (heading, why), names in grouped.items()]
    for rung, row in result["rungs"].items():
        for task, headline in row["tasks"][result["seeds"][0]].items():
            if headline["value"] is None:
                text.append(f"- – {task}: {rung}: {headline['reason']}")
    return "\n".join([*text, ""]) if text else ""


def csv_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per rung and metric: seeds, mean, sd, n, and the same of the differences."""
    rows = []
    for rung, row in (result["rungs"] | result["nulls"]).items():
        for key, values in row["metrics"].items():
            difference = row.get("difference", {}).get(key)
            rows.append(
                {
                    "rung": rung,
                    "metric": key,
                    **tables.csv_columns("", values, result["seeds"]),
                    **tables.csv_columns("difference_", difference, result["seeds"]),
                }
            )
    return rows
