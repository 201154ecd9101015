"""Where a registered version, and what was measured of a checkpoint, is found in MLflow."""

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mg3d import paths, tracking


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


def runs_of_checkpoint(store: MlflowClient, checkpoint_sha256: str) -> list[Any]:
    """Runs that carry a checkpoint's hash as their tag, oldest first."""
    experiment = store.get_experiment_by_name(tracking.EXPERIMENT)
    assert experiment is not None
    tagged = f"tags.{tracking.CHECKPOINT_TAG} = '{checkpoint_sha256}'"
    return list(store.search_runs([experiment.experiment_id], tagged, order_by=["start_time ASC"]))


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


def downstream_metrics(checkpoint_sha256: str) -> dict[str, dict[str, float]]:
    """Test metrics of every cell that was evaluated from a checkpoint, by the cell's name.

    Of a cell that was evaluated in several folders, the newest counts.
    """
    found = {}
    for run in runs_of_checkpoint(tracking.client(), checkpoint_sha256):
        of_test = {k: round(v, 4) for k, v in sorted(run.data.metrics.items()) if "/test/" in k}
        if of_test:
            found[str(run.info.run_name)] = of_test
    return found
