"""The record: runs in MLflow, and the encoder's versions (`registry` has the others).

A run is created once, by the process that a person or a flow started; its id lies in the run's
folder, so ranks, retries and resumes continue the same run. The store is a database from day one:
sqlite under ``runs/`` unless ``MLFLOW_TRACKING_URI`` names a server.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mg3d import paths
from mg3d.fingerprint import git_commit
from mg3d.occupied import is_occupied, occupied
from mg3d.params import Params, Register, save_params
from mg3d.registered_encoder import RegisteredEncoder
from mg3d.spool import Absent, Entry, Spool

EXPERIMENT = "mg3d"
CHECKPOINT_TAG = "checkpoint_sha256"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_REFUSALS = {
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "BAD_REQUEST", "INVALID_STATE", "ENDPOINT_NOT_FOUND"),
}


@dataclass(frozen=True)
class Tracked:
    """An open MLflow run. All calls batch into one request each."""

    client: MlflowClient
    run_id: str
    spool: Spool

    def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Record metrics of one step; keys read ``luna16/test/auroc``.

        If the server is not there they wait in the run's folder, and are sent when it is back.
        """
        now = int(time.time() * 1000)
        self.spool.add([Entry(key, float(value), now, step) for key, value in metrics.items()])

    def log_datasets(self, found: dict[str, str], context: str) -> None:
        """Record data sets as inputs: path -> DVC's hash."""
        inputs = [
            DatasetInput(
                Dataset(path, digest, "local", json.dumps({"uri": path, "dvc_md5": digest})),
                [InputTag("mlflow.data.context", context)],
            )
            for path, digest in found.items()
        ]
        if inputs:
            self.client.log_inputs(self.run_id, inputs)

    def log_folder(self, folder: Path) -> None:
        """Store a folder of figures or tables under its own name, if it exists."""
        if folder.is_dir():
            self.client.log_artifacts(self.run_id, str(folder), folder.name)

    def log_file(self, file: Path) -> None:
        """Store one file."""
        self.client.log_artifact(self.run_id, str(file))

    def set_checkpoint(self, checkpoint: Path) -> None:
        """Tag the run with the hash of the weights that it made or used."""
        digest = sha256_or_absent(checkpoint / paths.WEIGHTS)
        self.client.set_tag(self.run_id, CHECKPOINT_TAG, digest)

    def log_table(self, file: Path) -> None:
        """Store a table of ids, which `mg3d lineage` looks for; nothing if it is not there."""
        if file.exists():
            self.log_file(file)
            self.client.set_tag(self.run_id, f"has_{file.stem}", "true")

    def log_result(self, result: dict[str, Any]) -> None:
        """Store a downstream result: the file; headline, interval and nulls as metrics."""
        self.client.log_dict(self.run_id, result, paths.RESULT)
        if "checkpoint_sha256" in result:
            self.client.set_tag(self.run_id, CHECKPOINT_TAG, result["checkpoint_sha256"])
        headline, task = result["headline"], result["task"]
        low, high = headline["interval"] or (None, None)
        values = {
            headline["name"]: headline["value"],
            f"{headline['name']}_low": low,
            f"{headline['name']}_high": high,
            **{f"null_{name}": value for name, value in headline["null"].items()},
        }
        metrics = {
            f"{task}/test/{key}": value for key, value in values.items() if value is not None
        }
        self.on_metrics(0, metrics)


def client() -> MlflowClient:
    """Client of the configured store; creates the experiment on first use."""
    paths.RUNS.mkdir(exist_ok=True)
    default = f"sqlite:///{(paths.RUNS / 'mlflow.db').resolve()}"
    uri = os.environ.get("MLFLOW_TRACKING_URI", default)
    mlflow.set_tracking_uri(uri)
    opened = MlflowClient(uri)
    if opened.get_experiment_by_name(EXPERIMENT) is None:
        local = (paths.RUNS / "artifacts").resolve().as_uri() if uri == default else None
        try:
            opened.create_experiment(EXPERIMENT, artifact_location=local)
        except MlflowException:  # another process was first
            if opened.get_experiment_by_name(EXPERIMENT) is None:
                raise
    mlflow.set_experiment(EXPERIMENT)
    return opened


def attach(folder: Path) -> Tracked:
    """The run whose id lies in ``folder`` (for rank 0 of a run that the launcher created)."""
    return _tracked(client(), folder, (folder / paths.MLFLOW_RUN_ID).read_text().strip())


def _tracked(store: MlflowClient, folder: Path, run_id: str) -> Tracked:
    def send(entries: Sequence[Entry]) -> None:
        metrics = [Metric(*entry) for entry in entries]
        with _absence(patient=False):
            store.log_batch(run_id, metrics=metrics)

    return Tracked(store, run_id, Spool(folder / paths.SPOOL, send))


@contextmanager
def _absence(patient: bool = True) -> Iterator[None]:
    """A server that does not answer raises Absent; at once unless ``patient``.

    What it refuses (a wrong name, no such run, no permission) stays an MlflowException.
    """
    before = os.environ.get(_RETRIES)
    if not patient:
        os.environ[_RETRIES] = "0"
    try:
        yield
    except MlflowException as error:
        if error.error_code in _REFUSALS:
            raise
        raise Absent(f"MLflow does not answer ({error.error_code})") from error
    finally:
        if not patient:
            if before is None:
                del os.environ[_RETRIES]
            else:
                os.environ[_RETRIES] = before


@contextmanager
def track(
    folder: Path,
    name: str,
    params: Params,
    parent: Path | None = None,
    system_metrics: bool = False,
) -> Iterator[Tracked]:
    """Open the MLflow run of a run's folder, creating it once; close it as finished or failed.

    Only one process has it open; others wait. One that is told to stop closes it as killed, and
    for one that is killed :func:`reconcile` does.
    ``parent``: folder of the run this one is a child of; see :func:`pipeline`.
    ``system_metrics``: the machine's load too, while the block runs.
    """
    with occupied(folder), _opened(folder, name, params, parent, system_metrics) as tracked:
        yield tracked


@contextmanager
def _opened(
    folder: Path, name: str, params: Params, parent: Path | None, system_metrics: bool
) -> Iterator[Tracked]:
    store = client()
    id_file = folder / paths.MLFLOW_RUN_ID
    if id_file.exists():
        tracked = _tracked(store, folder, id_file.read_text().strip())
        store.update_run(tracked.run_id, status="RUNNING")
    else:
        experiment = store.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        tags = {"git_commit": git_commit(), "dvc_lock_sha256": sha256_or_absent(paths.DVC_LOCK)}
        run = store.create_run(experiment.experiment_id, run_name=name, tags=tags)
        tracked = _tracked(store, folder, run.info.run_id)
        flat = _flatten(params.model_dump(mode="json", by_alias=True))
        store.log_batch(tracked.run_id, params=[Param(k, str(v)) for k, v in flat.items()])
        with paths.atomic_write(id_file) as temporary:
            temporary.write_text(tracked.run_id + "\n")
    parent_id = None
    if parent is not None:
        parent_id = (parent / paths.MLFLOW_RUN_ID).read_text().strip()
        store.set_tag(tracked.run_id, MLFLOW_PARENT_RUN_ID, parent_id)
        store.update_run(parent_id, status="RUNNING")
    if (folder / paths.RUN_PARAMS).exists():
        store.log_artifact(tracked.run_id, str(folder / paths.RUN_PARAMS))
    monitor = SystemMetricsMonitor(tracked.run_id, resume_logging=True) if system_metrics else None
    if monitor is not None:
        monitor.start()
    status = "FINISHED"
    try:
        yield tracked
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        if monitor is not None:
            monitor.finish()
        _end(tracked, status, None if parent is None or is_occupied(parent) else parent_id)


def _end(tracked: Tracked, status: str, parent_id: str | None) -> None:
    """Send what waits and close the run; what is done is done if the server is absent."""
    try:
        tracked.spool.flush()
        with _absence():
            tracked.client.set_terminated(tracked.run_id, status)
            if parent_id is not None:
                _settle(tracked.client, parent_id)
    except Absent as absent:
        print(f"{absent}: run {tracked.run_id} stays open and is {status}", file=sys.stderr)


def reconcile(runs: Path) -> list[Path]:
    """Mark as killed each MLflow run under ``runs`` that is open though no process works on it.

    Returns the folders of those runs; the next process that opens one goes on with its MLflow run.
    """
    store = client()
    killed, parents = [], []
    for id_file in sorted(runs.rglob(paths.MLFLOW_RUN_ID)):
        run_id, folder = id_file.read_text().strip(), id_file.parent
        try:
            status = store.get_run(run_id).info.status
        except MlflowException:  # a folder from another store
            continue
        if status != "RUNNING" or is_occupied(folder):
            continue
        if folder.name == paths.PIPELINE:
            parents.append(run_id)
        else:
            store.set_terminated(run_id, "KILLED")
            killed.append(folder)
    for run_id in parents:
        _settle(store, run_id)
    return killed


def pipeline(run: Path, params: Params) -> Path:
    """The folder whose MLflow run is the parent of a training and of what is evaluated from it.

    Whichever of them begins first creates it; the params file it has is the newest one's. It is
    open while one of them is, and then ends as they did: failed or killed if one of them was.
    """
    folder = run / paths.PIPELINE
    save_params(params, folder / paths.RUN_PARAMS)
    with track(folder, f"pipeline {run.name}", params):
        pass
    return folder


def _settle(store: MlflowClient, run_id: str) -> None:
    """End a parent that no process works on as its children ended, if all of them have."""
    run = store.get_run(run_id)
    children = store.search_runs(
        [run.info.experiment_id], f"tags.{MLFLOW_PARENT_RUN_ID} = '{run_id}'", max_results=1000
    )
    ends = {child.info.status for child in children}
    if "RUNNING" not in ends:
        worst = [end for end in ("FAILED", "KILLED", "FINISHED") if end in ends]
        store.set_terminated(run_id, worst[0] if worst else "KILLED")


def register(run: Path, params: Register) -> str:
    """Make a pre-training run's final encoder a version of a registered model; return its URI.

    The version carries signature, contract, git commit and ``dvc.lock`` hash. The same checkpoint
    is registered once; the alias moves to it either way. Raises ValueError if the run has no
    checkpoint.
    """
    from mg3d.training.checkpoint import export_encoder, latest, load_encoder

    checkpoint = latest(run / paths.CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"no checkpoint under {run}: run `mg3d pretrain` to its end first")
    store = client()
    digest = sha256_or_absent(checkpoint / paths.WEIGHTS)
    for known in versions(store, params.name):
        if known.tags.get(CHECKPOINT_TAG) == digest:
            store.set_registered_model_alias(params.name, params.alias, known.version)
            return f"models:/{params.name}/{known.version}"

    _, _, contract = load_encoder(checkpoint)
    tags = {
        CHECKPOINT_TAG: digest,
        "contract": contract.digest(),
        "git_commit": git_commit(),
        "dvc_lock_sha256": sha256_or_absent(paths.DVC_LOCK),
    }
    shape = (-1, 1, *contract.shape_voxels)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), shape, "volume")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    )
    pretraining = attach(run).run_id
    with mlflow.start_run(run_id=pretraining), tempfile.TemporaryDirectory() as folder:
        exported = export_encoder(checkpoint, Path(folder) / "encoder")
        logged = mlflow.pyfunc.log_model(
            name="encoder",
            python_model=str(Path(__file__).with_name("registered_encoder.py")),
            artifacts={"encoder": str(exported)},
            signature=signature,
            input_example={"volume": np.zeros((1, *shape[1:]), np.float32)},
            metadata=tags,
            pip_requirements=[f"mg3d=={importlib.metadata.version('mg3d')}"],
        )
    try:
        store.create_registered_model(params.name)
    except MlflowException:  # it exists
        store.get_registered_model(params.name)
    version = store.create_model_version(
        params.name, logged.model_uri, run_id=pretraining, tags=tags, model_id=logged.model_id
    )
    store.set_registered_model_alias(params.name, params.alias, version.version)
    return f"models:/{params.name}/{version.version}"


def load_registered(uri: str) -> RegisteredEncoder:
    """The encoder behind ``models:/name@alias`` or ``models:/name/version``.

    Raises ValueError, naming the remedy, if the registry has no such model.
    """
    find_version(client(), uri)
    loaded: RegisteredEncoder = mlflow.pyfunc.load_model(uri).unwrap_python_model()
    return loaded


def describe(uri: str) -> dict[str, Any]:
    """What the registry knows of a model version: source run, contract, commit, metrics."""
    store = client()
    version = find_version(store, uri)
    run = store.get_run(version.run_id)
    return {
        "model": f"models:/{version.name}/{version.version}",
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        **version.tags,
        "metrics": {key: round(value, 4) for key, value in sorted(run.data.metrics.items())},
        "downstream": downstream_metrics(version.tags.get(CHECKPOINT_TAG, "")),
    }


def downstream_metrics(checkpoint_sha256: str) -> dict[str, dict[str, float]]:
    """Test metrics of every cell that was evaluated from a checkpoint, by the cell's name.

    Of a cell that was evaluated in several folders, the newest counts.
    """
    found = {}
    for run in runs_of_checkpoint(client(), checkpoint_sha256):
        of_test = {k: round(v, 4) for k, v in sorted(run.data.metrics.items()) if "/test/" in k}
        if of_test:
            found[str(run.info.run_name)] = of_test
    return found


def result_of(store: MlflowClient, run_id: str) -> dict[str, Any]:
    """The downstream result that a run recorded. Raises ValueError if it recorded none."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = store.download_artifacts(run_id, paths.RESULT, folder)
            result: dict[str, Any] = json.loads(Path(file).read_text())
    except (MlflowException, OSError) as error:
        raise ValueError(f"run {run_id} recorded no {paths.RESULT}: run `mg3d evaluate`") from error
    return result


def results_of_checkpoint(store: MlflowClient, checkpoint_sha256: str) -> list[dict[str, Any]]:
    """The result of every cell that was evaluated from a checkpoint, the newest of each."""
    found = {}
    for run in runs_of_checkpoint(store, checkpoint_sha256):
        if any("/test/" in key for key in run.data.metrics):
            found[run.info.run_name] = result_of(store, run.info.run_id)
    return list(found.values())


def runs_of_checkpoint(store: MlflowClient, checkpoint_sha256: str) -> list[Any]:
    """Runs that carry a checkpoint's hash as their tag, oldest first."""
    experiment = store.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    tagged = f"tags.{CHECKPOINT_TAG} = '{checkpoint_sha256}'"
    return list(store.search_runs([experiment.experiment_id], tagged, order_by=["start_time ASC"]))


def find_version(store: MlflowClient, uri: str) -> Any:
    """The version behind ``models:/name@alias`` or ``models:/name/version``.

    Raises ValueError, naming the remedy, if the registry has no such model.
    """
    name, separator, alias = uri.removeprefix("models:/").partition("@")
    try:
        if separator:
            return store.get_model_version_by_alias(name, alias)
        name, _, version = name.partition("/")
        return store.get_model_version(name, version)
    except MlflowException as error:
        known = ", ".join(model.name for model in store.search_registered_models()) or "none"
        raise ValueError(
            f"no registered model {uri}: the registry knows {known}; "
            "run `make demo` or `mg3d register RUN`"
        ) from error


def versions(store: MlflowClient, name: str) -> list[Any]:
    """All versions of a registered model; none if it does not exist."""
    return list(store.search_model_versions(f"name='{name}'"))


def dvc_hashes(under: Path) -> dict[str, str]:
    """Path -> DVC's MD5 of each stage's output under a folder, and of ``data.dvc``'s.

    As `dvc.lock` and `data.dvc` have them; nothing without the files.
    """
    tracked: list[dict[str, Any]] = []
    if paths.DVC_LOCK.exists():
        stages = yaml.safe_load(paths.DVC_LOCK.read_text()).get("stages", {})
        tracked += [out for stage in stages.values() for out in stage.get("outs", [])]
    if paths.DATA_DVC.exists():
        tracked += yaml.safe_load(paths.DATA_DVC.read_text()).get("outs", [])
    return {
        out["path"]: out["md5"]
        for out in tracked
        if "md5" in out and Path(out["path"]).is_relative_to(under)
    }


def sha256_or_absent(path: Path) -> str:
    """Of a file's bytes; ``absent`` without it."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
