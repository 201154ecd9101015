"""Training goes on while the MLflow server is away, and the record is whole afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

from mg3d import paths, tracking
from mg3d.params import load_params

from .conftest import ENV, ROOT, free_port, stop, wait_for


def start(folder: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'own.db'}"]
    command += ["--artifacts-destination", str(folder / "own")]
    with (folder / "own.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENV)
    wait_for(f"http://127.0.0.1:{port}/health", process)
    return process


@pytest.mark.slow
def test_metrics_of_an_absence_are_replayed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    params = load_params(ROOT / paths.PARAMS)
    folder = paths.RUNS / "a"
    server = start(tmp_path, port)
    try:
        with tracking.track(folder, "pretrain", params) as tracked:
            tracked.on_metrics(1, {"loss": 1.0})
            stop(server)
            tracked.on_metrics(2, {"loss": 0.5})
            tracked.on_metrics(3, {"loss": 0.25})
            lines = (folder / paths.SPOOL).read_text()
            assert len(lines.splitlines()) == 2
            server = start(tmp_path, port)
        assert not (folder / paths.SPOOL).exists()
        (folder / paths.SPOOL).write_text(lines)  # as if it had died before it forgot them
        assert tracking.attach(folder).spool.flush()
        history = tracking.client().get_metric_history(tracked.run_id, "loss")
        assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 0.5), (3, 0.25)]
        assert tracking.client().get_run(tracked.run_id).info.status == "FINISHED"
    finally:
        stop(server)
