"""The servers of compose.yaml, started as it says: logins, model sources, backup and restore.

Without a Docker daemon they run as plain processes with the commands and the environment of the
compose file, on PostgreSQL of Debian's packages.
"""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from postgres import Cluster, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
SECRETS = {
    "POSTGRES_PASSWORD": "databasepassword",
    "PREFECT_AUTH_STRING": "admin:prefectpassword",
    "MLFLOW_ADMIN_PASSWORD": "mlflowadminpassword",
    "MLFLOW_SECRET_KEY": "mlflowformkey",
    "MG3D_ID_KEY": "a key of the test",
}


@dataclass(frozen=True)
class Server:
    """One of the two, at ``url``; ``login`` as user:password."""

    url: str
    login: str

    def ask(self, path: str, body: Any = None, login: str | None = "") -> tuple[int, Any]:
        """Status and JSON of a request; with its own login unless another, or None, is given."""
        request = urllib.request.Request(self.url + path, method="POST" if body else "GET")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if login is not None:
            code = base64.b64encode((login or self.login).encode()).decode()
            request.add_header("Authorization", f"Basic {code}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        try:
            return status, json.loads(content)
        except ValueError:
            return status, content.decode(errors="replace")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _of_compose(
    service: str, database: Cluster, port: int, artifacts: Path
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a service, with addresses and folders of this machine."""
    described = SERVICES[service]

    def here(text: str) -> str:
        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: SECRETS[match[1]], text)
        text = text.replace("@postgres:5432", f"@127.0.0.1:{database.port}")
        text = text.replace("/artifacts", str(artifacts)) if text == "/artifacts" else text
        text = text.replace("/etc/mlflow/auth.ini", str(ROOT / "docker/mlflow_auth.ini"))
        text = text.replace("5000", str(port)).replace("4200", str(port))
        return "127.0.0.1" if text in ("0.0.0.0", "postgres") and text != "postgres" else text

    environment = {name: here(str(value)) for name, value in described["environment"].items()}
    if "PGHOST" in environment:
        environment |= {"PGHOST": "127.0.0.1", "PGPORT": str(database.port)}
    command = [here(word) for word in described["command"]]
    if service == "prefect":
        command += ["--port", str(port)]
    return [str(Path(sys.executable).parent / command[0]), *command[1:]], environment


def _start(stack: ExitStack, service: str, database: Cluster, folder: Path) -> Server:
    port = _free_port()
    command, environment = _of_compose(service, database, port, folder / "artifacts")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    environment = (
        inherited | environment | {"PREFECT_HOME": str(folder / "prefect"), "DO_NOT_TRACK": "1"}
    )
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    log = (folder / f"{service}.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def end() -> None:
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=20)[1]:
            member.kill()
        process.wait()
        log.close()

    stack.callback(end)
    health = "/api/health" if service == "prefect" else "/health"
    login = (
        SECRETS["PREFECT_AUTH_STRING"]
        if service == "prefect"
        else f"admin:{SECRETS['MLFLOW_ADMIN_PASSWORD']}"
    )
    server = Server(f"http://127.0.0.1:{port}", login)
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / f"{service}.log").read_text()[-3000:]
        try:
            if server.ask(health, login=None)[0] == 200:
                return server
        except OSError:
            time.sleep(1)
    raise AssertionError((folder / f"{service}.log").read_text()[-3000:])


@pytest.fixture(scope="module")
def database() -> Iterator[Cluster]:
    with cluster(_free_port(), SECRETS["POSTGRES_PASSWORD"]) as running:
        running.run("psql", "-q", "-f", ROOT / "docker/databases.sql")
        yield running


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def _new_run(mlflow: Server) -> str:
    status, found = mlflow.ask("/api/2.0/mlflow/experiments/create", {"name": "tried"})
    assert status == 200, found
    body = {"experiment_id": found["experiment_id"], "run_name": "kept"}
    status, found = mlflow.ask("/api/2.0/mlflow/runs/create", body)
    assert status == 200, found
    return str(found["run"]["info"]["run_id"])


def test_mlflow_asks_for_a_login_restricts_sources_and_comes_back_from_a_backup(
    database: Cluster, stack: ExitStack, tmp_path: Path
) -> None:
    with ExitStack() as first:
        mlflow = _start(first, "mlflow", database, tmp_path)
        search = "/api/2.0/mlflow/experiments/search?max_results=5"
        assert mlflow.ask(search, login=None)[0] == 401
        assert mlflow.ask(search, login="admin:password1234")[0] == 401
        assert mlflow.ask(search)[0] == 200
        run = _new_run(mlflow)

        assert mlflow.ask("/api/2.0/mlflow/registered-models/create", {"name": "m"})[0] == 200
        for source in ("/etc", "file:///etc", "https://example.org/model", "s3://bucket/model"):
            body = {"name": "m", "source": source, "run_id": run}
            status, said = mlflow.ask("/api/2.0/mlflow/model-versions/create", body)
            assert status == 400, (source, said)
        (tmp_path / "artifacts/kept").mkdir(parents=True)
        (tmp_path / "artifacts/kept/figure.txt").write_text("a figure")

        # what docs/operations.md says: dump the databases, copy the artifacts
        for name in ("mlflow", "mlflow_auth"):
            database.run("pg_dump", "--format=custom", f"--file={tmp_path / name}.dump", name)
        shutil.copytree(tmp_path / "artifacts", tmp_path / "artifacts.backup")

    for name in ("mlflow", "mlflow_auth"):
        database.run("dropdb", name)
    shutil.rmtree(tmp_path / "artifacts")
    for name in ("mlflow", "mlflow_auth"):
        database.run("createdb", name)
        database.run("pg_restore", "--exit-on-error", f"--dbname={name}", f"{tmp_path / name}.dump")
    shutil.copytree(tmp_path / "artifacts.backup", tmp_path / "artifacts")
    restored = _start(stack, "mlflow", database, tmp_path)
    status, found = restored.ask(f"/api/2.0/mlflow/runs/get?run_id={run}")
    assert status == 200, found
    assert found["run"]["info"]["run_name"] == "kept"
    assert (tmp_path / "artifacts/kept/figure.txt").read_text() == "a figure"
    log = (tmp_path / "mlflow.log").read_text()
    assert not [secret for secret in SECRETS.values() if secret in log]


def test_prefect_asks_for_a_login_and_comes_back_from_a_backup(
    database: Cluster, stack: ExitStack, tmp_path: Path
) -> None:
    with ExitStack() as first:
        prefect = _start(first, "prefect", database, tmp_path)
        assert prefect.ask("/api/flows/filter", {"limit": 1}, login=None)[0] == 401
        assert prefect.ask("/api/flows/filter", {"limit": 1}, login="admin:guess")[0] == 401
        assert prefect.ask("/api/flows/", {"name": "kept"})[0] == 201
        dump = tmp_path / "prefect.dump"
        database.run("pg_dump", "--format=custom", f"--file={dump}", "prefect")
    database.run("dropdb", "--force", "prefect")
    database.run("createdb", "prefect")
    database.run("pg_restore", "--exit-on-error", "--dbname=prefect", dump)
    restored = _start(stack, "prefect", database, tmp_path)
    status, found = restored.ask("/api/flows/filter", {"limit": 5})
    assert (status, [flow["name"] for flow in found]) == (200, ["kept"])
    log = (tmp_path / "prefect.log").read_text()
    assert not [secret for secret in SECRETS.values() if secret in log]
