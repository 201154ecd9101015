"""The record: runs in MLflow. (`registry` has what became of them.)

A run is created once, by the process that a person or a flow started; its id lies in the run's
folder, so ranks, retries and resumes continue the same run. The store is a database from day one:
sqlite under ``runs/`` unless ``MLFLOW_TRACKING_URI`` names a server.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mg3d import paths
from mg3d.fingerprint import git_commit
from mg3d.occupied import is_occupied, occupied
from mg3d.params import Params, save_params
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
