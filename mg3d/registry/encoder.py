"""The encoder of a pre-training as a registered model: `mg3d-encoder`."""

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from mg3d import paths, registered_encoder, tracking
from mg3d.fingerprint import git_commit
from mg3d.params import Register
from mg3d.registered_encoder import RegisteredEncoder
from mg3d.registry.lookup import downstream_metrics, find_version, versions
from mg3d.training.checkpoint import export_encoder, latest, load_encoder


def register(run: Path, params: Register) -> str:
    """Make a pre-training run's final encoder a version of a registered model; return its URI.

    The version carries signature, contract, git commit and ``dvc.lock`` hash. The same checkpoint
    is registered once; the alias moves to it either way. Raises ValueError if the run has no
    checkpoint.
    """
    checkpoint = latest(run / paths.CHECKPOINTS)
    if checkpoint is None:
        raise ValueError(f"no checkpoint under {run}: run `mg3d pretrain` to its end first")
    store = tracking.client()
    digest = tracking.sha256_or_absent(checkpoint / paths.WEIGHTS)
    for known in versions(store, params.name):
        if known.tags.get(tracking.CHECKPOINT_TAG) == digest:
            store.set_registered_model_alias(params.name, params.alias, known.version)
            return f"models:/{params.name}/{known.version}"

    _, _, contract = load_encoder(checkpoint)
    tags = {
        tracking.CHECKPOINT_TAG: digest,
        "contract": contract.digest(),
        "git_commit": git_commit(),
        "dvc_lock_sha256": tracking.sha256_or_absent(paths.DVC_LOCK),
    }
    shape = (-1, 1, *contract.shape_voxels)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.float32), shape, "volume")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, -1))]),
    )
    pretraining = tracking.attach(run).run_id
    with mlflow.start_run(run_id=pretraining), tempfile.TemporaryDirectory() as folder:
        exported = export_encoder(checkpoint, Path(folder) / "encoder")
        logged = mlflow.pyfunc.log_model(
            name="encoder",
            python_model=registered_encoder.__file__,
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
    find_version(tracking.client(), uri)
    loaded: RegisteredEncoder = mlflow.pyfunc.load_model(uri).unwrap_python_model()
    return loaded


def describe(uri: str) -> dict[str, Any]:
    """What the registry knows of a model version: source run, contract, commit, metrics."""
    store = tracking.client()
    version = find_version(store, uri)
    run = store.get_run(version.run_id)
    return {
        "model": f"models:/{version.name}/{version.version}",
        "aliases": list(version.aliases),
        "run_id": version.run_id,
        **version.tags,
        "metrics": {key: round(value, 4) for key, value in sorted(run.data.metrics.items())},
        "downstream": downstream_metrics(version.tags.get(tracking.CHECKPOINT_TAG, "")),
    }
