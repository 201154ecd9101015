"""A downstream task: a declaration, its cases, its split, and the one way to evaluate it.

Order: what was chosen on validation is locked in ``selection.json`` before the test split opens,
predictions are files first, scores are read from those files, figures too, and ``result.json``
comes last, so its presence means that everything else is there.
"""

import hashlib
import json
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mg3d import fingerprint, paths
from mg3d.finetuning.cases import Case, Split
from mg3d.finetuning.leaks import refuse_leaks
from mg3d.finetuning.selection import ClosedSplit, Selection, count_openings, selecting
from mg3d.finetuning.split_files import Listed, as_listed, split_file
from mg3d.finetuning.splits import SPLIT_SEED, split_cases, split_sha256
from mg3d.ledger import Ledger
from mg3d.metrics.bootstrap import Estimate
from mg3d.params import Finetune

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OnMetrics = Callable[[int, dict[str, float]], None]
_CODE = ("data", "models", "training", "finetuning", "metrics")
_LIBRARIES = ("torch", "monai", "transformers", "scikit-learn", "numpy", "scipy")
_READ_WHOLE = 4 * 2**20  # files up to this size, and every table, count by content


@dataclass(frozen=True)
class Scores:
    """What a kind reads from its prediction files.

    ``metrics`` are the model's, ``nulls`` the same metrics of each null baseline, ``counts`` what
    was counted, ``notes`` what a reader of the numbers must know.
    """

    metrics: dict[str, Estimate]
    nulls: dict[str, dict[str, Estimate]]
    counts: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Kind(Protocol):
    """A module of this package: classification, segmentation, retrieval or report_generation."""

    NAME: str

    def predict(
        self,
        split: Split,
        checkpoint: Path,
        predictions: Path,
        params: Any,
        ledger: Ledger,
        on_metrics: OnMetrics,
        prefix: str,
    ) -> dict[str, Any]:
        """Train what the mode trains on train, write files for test; returns provenance."""

    def score(self, predictions: Path, params: Any) -> Scores:
        """Metrics and null baselines from prediction files only; no model, no image."""

    def draw(self, predictions: Path, params: Any) -> "dict[str, Figure]":
        """Figures by file name (without suffix), from prediction files only."""


@dataclass(frozen=True)
class DownstreamTask:
    """The declaration in a file of `mg3d.downstream`.

    ``version`` rises whenever anything changes a number. ``cases(data, ledger)`` reads the official
    layout, declares every input to the ledger and quarantines the bad ones; it settles nothing
    else. ``headline`` names the metric that heads the task; where it is unavailable the next one
    does, and the result says why. ``listed`` says how its split file names a case; None: it needs
    no such file.
    """

    name: str
    version: str
    kind: Kind
    cases: Callable[[Path, Ledger], list[Case]]
    headline: tuple[str, ...]
    citation: str
    licence: str
    listed: Listed | None = None


def data_digest(data: Path) -> str:
    """Digest of a data set: names and sizes; contents of tables and of files up to 4 MiB."""
    digest = hashlib.sha256()
    for file in sorted(path for path in data.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(data)}\x00{size}\x00".encode())
        if size <= _READ_WHOLE or file.suffix in {".csv", ".json", ".txt"}:
            digest.update(fingerprint.file_sha256(file).encode())
    return digest.hexdigest()[:16]


def evaluate(
    task: DownstreamTask,
    checkpoint: Path,
    data: Path,
    out: Path,
    params: Finetune,
    on_metrics: OnMetrics,
    openings: Path | None = None,
    cache: Path | None = None,
    cache_gb: float = 20.0,
) -> dict[str, Any]:
    """Predict, score, draw; write ``out/result.json`` and return it.

    ``data`` is the folder of this data set in its official layout. If a result with the same
    inputs (params, weights, data, code) is there, it is returned without work. ``openings`` is the
    file that counts the selections which opened a test split (default: one in ``out``). In
    ``cache``, of ``cache_gb``, evaluations share volumes and embeddings (`finetuning.store`).
    Raises ValueError when the data are missing, leave nothing to test on, or are looked at too
    early.
    """
    if not data.is_dir():
        raise ValueError(
            f"no data for {task.name} at {data}: put the data set there in its official layout, "
            "or run `mg3d write_cohort`"
        )
    inputs: dict[str, Any] = {
        "task": {"name": task.name, "version": task.version},
        "params": params.model_dump(mode="json"),
        "checkpoint": fingerprint.file_sha256(checkpoint / paths.WEIGHTS),
        "data": data_digest(data),
        "split": _digest_of_split(task.name, params),
        "code": fingerprint.code((*_CODE, f"downstream/{task.name}.py")),
        "libraries": fingerprint.libraries(_LIBRARIES),
    }
    result_file = out / paths.RESULT
    if result_file.exists():
        existing: dict[str, Any] = json.loads(result_file.read_text())
        if existing.get("inputs") == inputs:
            return existing
        result_file.unlink()

    import torch

    from mg3d.finetuning.encoders import about_random_encoder
    from mg3d.finetuning.store import keeping

    began = time.monotonic()
    torch.set_num_threads(params.num_threads)
    ledger = Ledger(task.name, "case")
    cases = task.cases(data, ledger)
    if not cases:
        raise ValueError(
            f"no usable case for {task.name} under {data}: {_reasons(ledger)}; "
            "is it the official layout?"
        )
    if params.split == "file":
        cases = as_listed(task.name, cases, task.listed, ledger)
    split = split_cases(
        cases,
        seed=SPLIT_SEED,
        validation_fraction=params.validation_fraction,
        test_fraction=params.test_fraction,
        fold=params.fold,
    )
    guarded = refuse_leaks(task.name, split, texts=task.kind.NAME == "report_generation")
    predictions = out / paths.PREDICTIONS
    shutil.rmtree(predictions, ignore_errors=True)
    predictions.mkdir(parents=True)
    (out / paths.FITTED).unlink(missing_ok=True)
    of = {"task": task.name, "mode": params.mode, "seed": params.seed}
    if params.fold is not None:
        of["fold"] = params.fold
    selection = Selection(out / paths.SELECTION, of)
    if params.mode == "zero_shot":  # trains nothing: the checkpoint is the choice
        selection.choose(weights_sha256=inputs["checkpoint"])
    split = ClosedSplit(split, selection)
    with selecting(selection), keeping(cache, cache_gb):
        provenance = task.kind.predict(
            split, checkpoint, predictions, params, ledger, on_metrics, task.name
        )
    test_sha256 = split_sha256({"test": split["test"]})
    settled = {entry.input_id for entry in ledger.entries}
    for case in cases:
        if case.case_id not in settled:
            ledger.use(case.case_id)
    ledger.write(out)
    _write_cases(out / paths.CASES, split)

    scores = task.kind.score(predictions, params)
    result: dict[str, Any] = {
        "task": task.name,
        "version": task.version,
        "kind": task.kind.NAME,
        "mode": params.mode,
        "seed": params.seed,
        "split": params.split,
        "fold": params.fold,
        **summarise(task.headline, scores),
        "cases": {name: len(part) for name, part in split.items()},
        "ledger": ledger.summary(),
        "split_sha256": split_sha256(split),
        "leak_guard": guarded,
        "test_sha256": test_sha256,
        "selection": {**selection.chosen, "sha256": selection.sha256},
        "test_openings": count_openings(
            openings or out / paths.TEST_OPENINGS, task.name, test_sha256, selection.sha256
        ),
        **provenance,
        "checkpoint_sha256": inputs["checkpoint"],
        "fitted_sha256": fingerprint.file_sha256(out / paths.FITTED)
        if (out / paths.FITTED).exists()
        else None,
        "git_commit": fingerprint.git_commit(),
        "wall_s": 0.0,
        "peak_memory_mb": 0,
        "citation": task.citation,
        "licence": task.licence,
        "inputs": inputs,
    }
    if "random_encoder" in scores.nulls:
        result["notes"].append(about_random_encoder(params.mode))
    figures = out / paths.FIGURES
    figures.mkdir(exist_ok=True)
    for name, figure in task.kind.draw(predictions, params).items():
        with paths.atomic_write(figures / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)
    result["wall_s"] = round(time.monotonic() - began, 2)
    result["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with paths.atomic_write(result_file) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _digest_of_split(task: str, params: Finetune) -> str:
    """Of the split file where one is read; ``as_listed`` says what is wrong where it is absent."""
    file = split_file(task)
    if params.split == "rule" or not file.is_file():
        return params.split
    return fingerprint.file_sha256(file)


def _write_cases(file: Path, split: Mapping[str, Sequence[Case]]) -> None:
    """Which patient went into what, by pseudonym: the lineage's last link."""
    rows = [
        f"{case.case_id},{case.patient_id},{name}\n"
        for name, cases in split.items()
        for case in cases
    ]
    with paths.atomic_write(file) as temporary:
        temporary.write_text("case_id,patient_id,split\n" + "".join(sorted(rows)))


def score(task: DownstreamTask, out: Path, params: Finetune) -> dict[str, Any]:
    """Headline, metrics and nulls computed again from ``out/predictions`` alone.

    Raises ValueError if there are no predictions.
    """
    predictions = out / paths.PREDICTIONS
    if not predictions.is_dir():
        raise ValueError(f"no predictions under {out}: run `mg3d evaluate --task {task.name}`")
    return summarise(task.headline, task.kind.score(predictions, params))


def summarise(preferred: Sequence[str], scores: Scores) -> dict[str, Any]:
    """JSON form of ``scores``; the first available of ``preferred`` metrics heads it.

    A metric without a value is null, and ``unavailable`` tells why, null baselines included.
    """
    missing = [name for name in preferred if name not in scores.metrics]
    assert not missing, f"headline metrics {missing} are not among {list(scores.metrics)}"
    available = [name for name in preferred if scores.metrics[name].value is not None]
    head = (available or list(preferred))[0]
    unavailable = {
        name: estimate.reason for name, estimate in scores.metrics.items() if estimate.value is None
    }
    for null, metrics in scores.nulls.items():
        unavailable |= {
            f"{null}/{name}": estimate.reason
            for name, estimate in metrics.items()
            if estimate.value is None and name not in unavailable
        }
    return {
        "headline": {
            "name": head,
            **_as_json(scores.metrics[head]),
            "null": {
                null: metrics[head].value
                for null, metrics in scores.nulls.items()
                if head in metrics
            },
        },
        "metrics": {name: _as_json(estimate) for name, estimate in scores.metrics.items()},
        "nulls": {
            null: {name: _as_json(estimate) for name, estimate in metrics.items()}
            for null, metrics in scores.nulls.items()
        },
        "unavailable": unavailable,
        "counts": scores.counts,
        "notes": list(scores.notes),
    }


def _as_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "interval": list(estimate.interval) if estimate.interval else None,
        **({"reason": estimate.reason} if estimate.reason else {}),
    }


def _reasons(ledger: Ledger) -> str:
    found = sorted({str(entry.reason) for entry in ledger.entries if entry.reason})
    return ", ".join(found) or "nothing found"
