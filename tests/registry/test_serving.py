"""`mlflow models serve` answers over HTTP with what the model says."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from mg3d.registry.registration import register

from .conftest import World, free_port, stop, wait_for


@pytest.mark.slow
def test_a_task_is_served_over_http(world: World, chest: Path, abdomen: Path, here: Path) -> None:
    register(world.run, world.params)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", "models:/mg3d-stoic2021@candidate", "--host", "127.0.0.1"]
    command += ["--port", str(port)]
    with (here / "serve.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"MG3D_INPUTS": str(here)},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        body = {"dataframe_records": [{"path": str(chest)}, {"path": str(abdomen)}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            rows = json.load(response)["predictions"]
        assert rows[0]["study_id"].startswith("study-")
        findings = json.loads(rows[0]["answer"])["findings"]
        assert [finding["name"] for finding in findings] == ["covid", "severe"]
        assert json.loads(rows[1]["answer"])["refused"] == "no_chest"
    finally:
        stop(process)
