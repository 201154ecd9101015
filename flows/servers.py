"""`make up`, `make down`: Prefect's server, MLflow's, and the worker, on this machine's loopback.

supervisord (supervisord.conf) starts each, starts again what dies, and ends them. Ports by
environment: ``PREFECT_PORT``, ``MLFLOW_PORT``, ``WORKER_PORT``.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import typer

from mg3d import paths

CONFIGURATION = Path("supervisord.conf")
LOGS = paths.RUNS / "servers"
PORTS = {"PREFECT_PORT": "4200", "MLFLOW_PORT": "5000", "WORKER_PORT": "8080"}
HEALTH = {
    "prefect": "http://127.0.0.1:{PREFECT_PORT}/api/health",
    "mlflow": "http://127.0.0.1:{MLFLOW_PORT}/health",
    "worker": "http://127.0.0.1:{WORKER_PORT}/health",
}
WHERE_TO_CLICK = """
Prefect  http://127.0.0.1:{PREFECT_PORT}/deployments   press Run on pipeline, or on a part of it
MLflow   http://127.0.0.1:{MLFLOW_PORT}               runs, figures, registered models
Logs     {logs}/*.log; `make down` ends all three
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def up(timeout_s: float = 300.0) -> None:
    """Start what is not running, wait until all three answer, and say where to click."""
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = _environment()
    os.environ.update(environment)
    if _control("pid").returncode:
        _supervisor("supervisord")
    deadline = time.monotonic() + timeout_s
    _wait_for("prefect", deadline)
    _control("start", "worker")
    for name in ("mlflow", "worker"):
        _wait_for(name, deadline)
    print(WHERE_TO_CLICK.format(**environment, logs=LOGS))


@app.command()
def down(timeout_s: float = 120.0) -> None:
    """End the worker with its runs, then the servers."""
    os.environ.update(_environment())
    _control("stop", "worker")  # it still reports to the server
    if _control("shutdown").returncode:
        print("nothing was up")
    deadline = time.monotonic() + timeout_s
    while _control("pid").returncode == 0:
        if time.monotonic() > deadline:
            sys.exit(f"error: still ending after {timeout_s:.0f} s; see {LOGS}/supervisord.log")
        time.sleep(0.5)


def _environment() -> dict[str, str]:
    ports = {name: os.environ.get(name, port) for name, port in PORTS.items()}
    home = os.environ.get("PREFECT_HOME", str((paths.RUNS / "prefect").resolve()))
    return {**ports, "PYTHON": sys.executable, "PREFECT_HOME": home}


def _wait_for(name: str, deadline: float) -> None:
    """Until its health address answers; or end this program with the last lines of its log."""
    address = HEALTH[name].format(**os.environ)
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if time.monotonic() > deadline or "FATAL" in _control("status", name).stdout:
                log = LOGS / f"{name}.log"
                last = log.read_text().splitlines()[-20:] if log.exists() else []
                sys.exit("\n".join([f"error: {name} does not answer at {address}:", *last]))
        time.sleep(1)


def _control(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return _supervisor("supervisorctl", *arguments)


def _supervisor(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    module = f"supervisor.{program}"
    command = [sys.executable, "-m", module, "-c", str(CONFIGURATION), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    app()
