"""What a run made becomes versions: `mg3d-encoder`, `mg3d` (both towers), `mg3d-<task>` per task.

A version is code plus safetensors, never pickle; its tags are the hashes that `promotion` and
`lineage` follow. The same weights are registered once; `candidate` moves to them either way.
"""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import mg3d
from mg3d import paths, tracking
from mg3d.downstream import DOWNSTREAM
from mg3d.fingerprint import file_sha256
from mg3d.inference.dual import write_dual_encoder
from mg3d.inference.model import write_task_model
from mg3d.params import Params
from mg3d.registry import lookup
from mg3d.registry.card import card
from mg3d.registry.encoder import register as register_encoder
from mg3d.score import results
from mg3d.training.checkpoint import latest

TOWERS = "mg3d"
CANDIDATE, CHAMPION = "candidate", "champion"
CODE = Path(mg3d.__file__).parent
EXAMPLE = "study.nii.gz"
OF_WEIGHTS = "code Apache-2.0; weights as the data allow that they were pre-trained on"
_TEXT = DataType.string


@dataclass(frozen=True)
class _Model:
    """What is about to become a version."""

    name: str
    run_id: str
    code: str
    signature: ModelSignature
    example: pd.DataFrame
    tags: dict[str, str]
    about: dict[str, Any]


def task_name(task: str) -> str:
    """Of the registered model of a downstream task."""
    return f"{TOWERS}-{task}"


def register(run: Path, params: Params) -> list[str]:
    """Register all that a pre-training run and its evaluations made; URIs, the encoder's last.

    Of a task's cells the one in the params' mode, seed and fold becomes the candidate. Cells that
    kept nothing fitted (made by an older version) are passed over. Raises ValueError if the run has
    no checkpoint.
    """
    checkpoint = latest(run / paths.CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"no checkpoint under {run}: run `mg3d pretrain` to its end first")
    uris = []
    cells = results(run) if any(run.glob(f"{paths.EVALUATE}/*/*/{paths.RESULT}")) else {}
    for cell, result in cells.items():
        if (cell / paths.FITTED).exists() and (cell / paths.MLFLOW_RUN_ID).exists():
            section = params.downstream.task(result["task"])
            own = paths.cell_folder(run, result["task"], section.mode, section.seed, section.fold)
            min_lung_mm = params.convert_volumes.min_lung_mm
            uris.append(_register_task(checkpoint, cell, result, min_lung_mm, cell == own))
    if params.objective.itc_weight:
        uris.append(_register_towers(run, checkpoint, params.convert_volumes.min_lung_mm))
    encoder = register_encoder(run, params.register_)
    _describe_encoder(encoder, params.convert_volumes.min_lung_mm)
    return [*uris, encoder]


def _register_task(
    checkpoint: Path,
    cell: Path,
    result: Mapping[str, Any],
    min_lung_mm: float | None,
    is_candidate: bool,
) -> str:
    """One evaluated cell as a version of `mg3d-<task>`."""
    task = DOWNSTREAM[result["task"]]
    fitted = file_sha256(cell / paths.FITTED)
    if fitted != result["fitted_sha256"] or result["checkpoint_sha256"] != file_sha256(
        checkpoint / paths.WEIGHTS
    ):
        raise ValueError(
            f"{cell} was not evaluated from {checkpoint}, or {paths.FITTED} has changed since: "
            "run `mg3d evaluate` again"
        )
    run_id = tracking.attach(cell).run_id
    made = tracking.client().get_run(run_id).data.tags
    inputs: list[Any] = [ColSpec(_TEXT, "path")]
    example = pd.DataFrame({"path": [EXAMPLE]})
    if result["kind"] == "candidates":
        inputs.append(ColSpec(_TEXT, "candidates"))
        example["candidates"] = "candidates.csv"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        about = dict(write_task_model(checkpoint, cell, folder, min_lung_mm))
        tags = {
            "task": task.name,
            "mode": result["mode"],
            "seed": str(result["seed"]),
            **({} if result["fold"] is None else {"fold": str(result["fold"])}),
            tracking.CHECKPOINT_TAG: result["checkpoint_sha256"],
            "fitted_sha256": fitted,
            "weights_sha256": file_sha256(folder / paths.WEIGHTS),
            "contract": about["contract"],
            "test_sha256": result["test_sha256"],
            "git_commit": result["git_commit"],
            "dvc_lock_sha256": made.get("dvc_lock_sha256", "absent"),
            "licence": f"code Apache-2.0; trained on {task.name}, whose data are: {task.licence}",
        }
        outputs = Schema([ColSpec(_TEXT, "study_id"), ColSpec(_TEXT, "answer")])
        model = _Model(
            task_name(task.name),
            run_id,
            "registered_task.py",
            ModelSignature(inputs=Schema(inputs), outputs=outputs),
            example,
            tags,
            {**about, "headline": result["headline"], "citation": task.citation},
        )
        return _log(model, folder, ("fitted_sha256", tracking.CHECKPOINT_TAG), is_candidate)


def _register_towers(run: Path, checkpoint: Path, min_lung_mm: float | None) -> str:
    """Both towers as a version of `mg3d`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        about = write_dual_encoder(checkpoint, folder, min_lung_mm)
        store, run_id = tracking.client(), tracking.attach(run).run_id
        made = store.get_run(run_id).data.tags
        digest = file_sha256(checkpoint / paths.WEIGHTS)
        tags = {
            tracking.CHECKPOINT_TAG: digest,
            "weights_sha256": file_sha256(folder / paths.WEIGHTS),
            "contract": about["contract"],
            "git_commit": made.get("git_commit", "unknown"),
            "dvc_lock_sha256": made.get("dvc_lock_sha256", "absent"),
            "licence": OF_WEIGHTS,
        }
        signature = ModelSignature(
            inputs=Schema(
                [ColSpec(_TEXT, "path", required=False), ColSpec(_TEXT, "text", required=False)]
            ),
            outputs=Schema([ColSpec(_TEXT, "of"), ColSpec(_TEXT, "answer")]),
            params=ParamSchema([ParamSpec("ask", _TEXT, "embed")]),
        )
        example = pd.DataFrame({"text": ["No pleural effusion."]})
        model = _Model(TOWERS, run_id, "registered_towers.py", signature, example, tags, about)
        return _log(model, folder, (tracking.CHECKPOINT_TAG,), is_candidate=True)


def _describe_encoder(uri: str, min_lung_mm: float | None) -> None:
    """Give the encoder's version its licence and card."""
    store = tracking.client()
    version = lookup.find_version(store, uri)
    if version.description:
        return
    tags = {**version.tags, "licence": OF_WEIGHTS}
    admission = {"is_ct": True, "min_lung_mm": min_lung_mm}
    about = {"contract": tags["contract"], "admission": admission}
    store.set_model_version_tag(version.name, version.version, "licence", OF_WEIGHTS)
    store.update_model_version(version.name, version.version, card(version.name, tags, about))


def _log(model: _Model, folder: Path, identity: tuple[str, ...], is_candidate: bool) -> str:
    """The version with these hashes: found, or made from ``folder``."""
    store = tracking.client()
    for known in lookup.versions(store, model.name):
        if all(known.tags.get(tag) == model.tags[tag] for tag in identity):
            version = known.version
            break
    else:
        text = card(model.name, model.tags, model.about)
        (folder / "README.md").write_text(text)
        with mlflow.start_run(run_id=model.run_id):
            logged = mlflow.pyfunc.log_model(
                name=model.name,
                python_model=str(CODE / model.code),
                artifacts={"model": str(folder)},
                signature=model.signature,
                input_example=model.example,
                metadata=model.tags,
                pip_requirements=[f"mg3d=={importlib.metadata.version('mg3d')}"],
            )
        version = _create_version(store, model, logged, text)
    if is_candidate:
        store.set_registered_model_alias(model.name, CANDIDATE, version)
    return f"models:/{model.name}/{version}"


def _create_version(store: MlflowClient, model: _Model, logged: Any, text: str) -> str:
    try:
        store.create_registered_model(model.name)
    except MlflowException:  # it exists
        store.get_registered_model(model.name)
    made = store.create_model_version(
        model.name,
        logged.model_uri,
        run_id=model.run_id,
        tags=model.tags,
        model_id=logged.model_id,
        description=text,
    )
    return str(made.version)
