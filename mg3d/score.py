"""`mg3d score`: every score of an evaluated run again, from its prediction files alone."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mg3d import paths
from mg3d.downstream import DOWNSTREAM
from mg3d.finetuning import task as finetuning
from mg3d.finetuning.pooling import pool
from mg3d.finetuning.task import Scores
from mg3d.metrics.bootstrap import Estimate, mean_of
from mg3d.params import Downstream, Finetune

SCORED = ("headline", "metrics", "nulls", "unavailable", "counts")


def results(run: Path) -> dict[Path, dict[str, Any]]:
    """Folder -> result of every cell under ``run``, or of ``run`` itself if it is one.

    Raises ValueError if there is none.
    """
    files = sorted(run.glob(f"{paths.EVALUATE}/*/*/{paths.RESULT}"))
    if (run / paths.PREDICTIONS).is_dir() and (run / paths.RESULT).exists():
        files = [run / paths.RESULT]
    if not files:
        raise ValueError(f"no results under {run}/{paths.EVALUATE}: run `mg3d evaluate` first")
    return {file.parent: json.loads(file.read_text()) for file in files}


def params_of(result: dict[str, Any]) -> Finetune:
    """The params that a result was made with."""
    section: type[Finetune] = type(Downstream().task(result["task"]))
    return section.model_validate(result["inputs"]["params"])


def samples_of(folder: Path, result: dict[str, Any]) -> Scores:
    """The cell's metrics as functions of its test cases, without intervals of their own."""
    params = params_of(result).model_copy(update={"num_bootstrap": 1})
    return DOWNSTREAM[result["task"]].kind.score(folder / paths.PREDICTIONS, params)


def samples_of_folds(cells: Mapping[Path, dict[str, Any]]) -> Scores:
    """As `samples_of`, for all folds of one mode and seed.

    Folds that test different patients are pooled: one set of predictions, in which each patient
    stands once. Folds that validate, and test the same patients (ACDC), are models of one test set:
    each metric is the mean over them. Raises ValueError where the test sets overlap in part.
    """
    if len(cells) == 1:
        return samples_of(*next(iter(cells.items())))
    if len({result.get("test_sha256") for result in cells.values()}) == 1:
        scored = [samples_of(folder, result) for folder, result in cells.items()]
        nulls = {name: _means([one.nulls[name] for one in scored]) for name in scored[0].nulls}
        return Scores(_means([one.metrics for one in scored]), nulls)
    with tempfile.TemporaryDirectory(prefix="mg3d-folds-") as temporary:
        together = Path(temporary)
        pool([folder / paths.PREDICTIONS for folder in cells], together / paths.PREDICTIONS)
        return samples_of(together, next(iter(cells.values())))


def _means(of_folds: Sequence[Mapping[str, Estimate]]) -> dict[str, Estimate]:
    return {
        name: mean_of([metrics[name] for metrics in of_folds], num_resamples=1, seed=0)
        for name in of_folds[0]
    }


def score(run: Path) -> dict[str, tuple[int, list[str]]]:
    """By cell: how many numbers were computed again, and a line for each that differs from
    ``result.json``. Neither the model nor the images are read. Raises ValueError without results
    or predictions.
    """
    found = {}
    for folder, result in results(run).items():
        scored = finetuning.score(DOWNSTREAM[result["task"]], folder, params_of(result))
        again = dict(_leaves({key: json.loads(json.dumps(scored[key])) for key in SCORED}))
        before = dict(_leaves({key: result[key] for key in SCORED}))
        lines = [
            f"{name}: {before.get(name)} in {paths.RESULT}, {again.get(name)} from the predictions"
            for name in sorted(before.keys() | again.keys())
            if not _same(before.get(name), again.get(name))
        ]
        numbers = sum(isinstance(value, float | int) for value in again.values())
        found[f"{result['task']}/{folder.name}"] = (numbers, lines)
    return found


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{prefix}/{key}" if prefix else str(key))
    else:
        yield prefix, tree


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)
