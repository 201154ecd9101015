"""A real `mlflow server` on loopback, and a run whose cells kept what they fitted."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from training.tiny_prepared import CONTRACT, OBJECTIVE, tiny_model

from mg3d import paths
from mg3d.fingerprint import Fingerprint, file_sha256
from mg3d.params import Cell, Params, load_params

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no schedulers
TASKS = ("stoic2021", "covid19_20")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with code {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def stop(process: subprocess.Popen) -> None:
    """End a server with its workers."""
    parent = psutil.Process(process.pid)
    for child in [*parent.children(recursive=True), parent]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(30)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of a file of tests: its server, its run, its models."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def server(here: Path) -> Iterator[str]:
    """URI of an MLflow server that stores in sqlite and serves artifacts."""
    uri = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", uri.rpartition(":")[2], "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{here / 'server.db'}"]
    command += ["--artifacts-destination", str(here / "stored")]
    with (here / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENV)
    try:
        wait_for(f"{uri}/health", process)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            yield uri
    finally:
        stop(process)


@dataclass
class World:
    """A pre-training run, and cells to be evaluated as a test pretends."""

    run: Path
    checkpoint: Path
    params: Params

    def evaluate(self, task: str, seed: int, value: float, low: float, **changes: Any) -> Path:
        """A cell as `mg3d evaluate` leaves it, whose headline is ``value``; its folder."""
        from mg3d import tracking

        cell = paths.cell_folder(self.run, task, "frozen", seed)
        cell.mkdir(parents=True, exist_ok=True)
        keep_random(self.checkpoint, cell, task, seed)
        (cell / paths.CASES).write_text(
            "case_id,patient_id,split\ncase-1,patient-1,train\ncase-2,patient-9,test\n"
        )
        headline = {
            "name": "auroc", "value": value, "interval": [low, 0.99],
            "null": {"prevalence": 0.5, "random_encoder": 0.6},
        }  # fmt: skip
        result = {
            "task": task, "version": "1", "mode": "frozen", "seed": seed, "fold": None,
            "kind": "segmentation" if task == "covid19_20" else "classification",
            "headline": headline, "test_sha256": "a" * 64, "git_commit": "c" * 40,
            "checkpoint_sha256": file_sha256(self.checkpoint / paths.WEIGHTS),
            "fitted_sha256": file_sha256(cell / paths.FITTED),
            "contract_digest": CONTRACT.digest(),
            "ledger": {"inputs": 5, "used": 4, "quarantined": 1, "reasons": {"unreadable": 1}},
        } | changes  # fmt: skip
        (cell / paths.RESULT).write_text(json.dumps(result))
        parent = tracking.pipeline(self.checkpoint.parent.parent, self.params)
        with tracking.track(cell, f"{task}/frozen-seed{seed}", self.params, parent) as tracked:
            tracked.log_result(result)
            tracked.log_table(cell / paths.CASES)
        return cell


def keep_random(checkpoint: Path, cell: Path, task: str, seed: int) -> None:
    """What a frozen cell keeps, with random heads."""
    from mg3d.finetuning.fitted import keep_fitted
    from mg3d.finetuning.probe import Classifier
    from mg3d.finetuning.unetr import UNETR
    from mg3d.params import Downstream
    from mg3d.training.checkpoint import load_encoder

    encoder, _, contract = load_encoder(checkpoint)
    params = Downstream().task(task)
    torch.manual_seed(seed)
    common: dict[str, Any] = {"task": task, "params": params, "contract_digest": contract.digest()}
    predictions = cell / paths.PREDICTIONS
    if task == "covid19_20":
        network = UNETR(encoder, False, 1)
        keep_fitted(
            predictions, network, kind="segmentation", labels=["lesion"],
            spacing_mm=[6.0, 6.0, 6.0], **common,
        )  # fmt: skip
        return
    head = Classifier(torch.randn(8, 64), 2, None)
    torch.nn.init.normal_(head.head.weight)
    labels = ["covid", "severe"]
    thresholds = {"covid": 0.4, "severe": None}
    keep_fitted(
        predictions, head, kind="classification", labels=labels, thresholds=thresholds, **common
    )


@pytest.fixture(scope="module")
def world(here: Path, server: str) -> World:
    from mg3d import tracking
    from mg3d.models.mg3d import MG3D
    from mg3d.training import checkpoint
    from mg3d.training.studies import write_studies

    params = load_params(ROOT / paths.PARAMS)
    model_params = tiny_model(here / "text")
    objective = OBJECTIVE.model_copy(
        update={f"{term}_weight": 0.0 for term in ("mlm", "sfr", "mim", "cml", "dfa", "ssm")}
    )
    params = params.model_copy(
        update={"contract": CONTRACT, "model": model_params, "objective": objective}
    )
    for task in TASKS:
        params = params.of_cell(Cell(task, "frozen", 0))
    run = paths.RUNS / "pretrain-x"
    torch.manual_seed(0)
    model = MG3D(model_params, objective)
    saved = checkpoint.save(
        run / paths.CHECKPOINTS,
        step=1,
        model=model,
        optimizer=torch.optim.AdamW(model.vision_encoder.parameters()),
        contract=CONTRACT,
        model_params=model_params,
        objective_params=objective,
        fingerprint=Fingerprint({"seed": 0}),
        rng=torch.zeros(1, 8, dtype=torch.uint8),
        position={},
        num_kept=2,
    )
    manifest = paths.stage_folder("build_manifest") / paths.MANIFEST
    manifest.parent.mkdir(parents=True)
    rows = [("study-1", "patient-1", "train"), ("study-2", "patient-2", "validation")]
    pd.DataFrame(rows, columns=["study_id", "patient_id", "split"]).to_parquet(manifest)
    with tracking.track(run, "pretrain", params) as tracked:
        write_studies(paths.PREPARED, run)
        tracked.log_table(run / paths.STUDIES)
        tracked.set_checkpoint(saved)
    world = World(run, saved, params)
    world.evaluate("stoic2021", seed=0, value=0.8, low=0.7)
    world.evaluate("covid19_20", seed=0, value=0.8, low=0.55)
    return world


@pytest.fixture(scope="module")
def chest(here: Path) -> Path:
    """A NIfTI file of a chest, stored LPS."""
    from downstream.layouts import chest_hu, write_nifti

    path = here / "chest.nii.gz"
    write_nifti(path, chest_hu((40, 36, 24), lesion=True), (6.0, 6.0, 6.0), "LPS")
    return path


@pytest.fixture(scope="module")
def abdomen(here: Path) -> Path:
    """A NIfTI file of a body without lungs, in air."""
    from downstream.layouts import write_nifti

    volume = np.full((40, 36, 24), -1000, np.int16)
    volume[6:-6, 6:-6] = 40
    path = here / "abdomen.nii.gz"
    write_nifti(path, volume, (6.0, 6.0, 6.0))
    return path
