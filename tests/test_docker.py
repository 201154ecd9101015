"""The containers, as far as they can be checked without a Docker daemon."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
ROOT = DOCKER.parent
COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
AUTH = (DOCKER / "mlflow_auth.ini").read_text()
SECRETS = (
    *("POSTGRES_PASSWORD", "PREFECT_AUTH_STRING", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"),
    "MG3D_ID_KEY",
)


def test_the_dockerfile_is_lint_free() -> None:
    lint = Path(sys.executable).parent / "hadolint"
    if not lint.exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([lint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_copies_files_that_exist_and_are_in_its_context() -> None:
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = [name for line in copies for name in line.split()[:-1]]
    assert {"constraints.txt", "pyproject.toml", "mg3d", "flows"} <= set(sources)
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignore


def test_the_image_runs_pinned_and_without_root() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    one_line = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"pip install [^&\n]*", one_line)
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in i or "--no-deps" in i for i in installs)
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^psycopg2-binary==[\d.]+$", pins, re.MULTILINE)
    assert re.search(r"^Flask-WTF==[\d.]+$", pins, re.MULTILINE)
    assert '".[server]"' in DOCKERFILE
    assert "HEALTHCHECK" in DOCKERFILE


def test_the_four_services() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "mlflow", "worker"}
    for name in ("prefect", "mlflow", "worker"):
        assert SERVICES[name]["build"] == {"context": "..", "dockerfile": "docker/Dockerfile"}


def test_every_service_tells_its_health_and_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        assert "healthcheck" in service or (name == "worker" and "command" not in service), name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES
            assert how == {"condition": "service_healthy"}
    assert set(SERVICES["worker"]["depends_on"]) == {"prefect", "mlflow"}


def test_ports_are_bound_to_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:4200:4200", "127.0.0.1:5000:5000"]


def test_secrets_come_from_the_environment_file_alone() -> None:
    example = (DOCKER / ".env.example").read_text()
    offered = dict(line.split("=", 1) for line in example.splitlines() if re.match(r"\w+=", line))
    used = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    assert used == set(offered)
    for name in SECRETS:
        assert offered[name] == "", "an example must not be a password"
        assert f"${{{name}:-" not in COMPOSE_TEXT, "a secret has no default"
        assert f"${{{name}:?" in COMPOSE_TEXT, "without it nothing starts"
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|KEY|SECRET|TOKEN|AUTH_STRING", name):
                assert str(value).startswith("${"), name
    assert (DOCKER / ".gitignore").read_text().split() == [".env"]


def test_volumes_are_declared_and_mounts_exist() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    mounted = [mount.split(":")[0] for mount in mounts]
    assert {name for name in mounted if not name.startswith(".")} == set(COMPOSE["volumes"])
    for name in mounted:
        if name.startswith("."):
            assert (DOCKER / name).exists(), name


def test_services_name_each_other_in_their_addresses() -> None:
    worker = SERVICES["worker"]["environment"]
    assert worker["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert worker["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    databases = re.findall(r"@postgres:5432/(\w+)", COMPOSE_TEXT)
    created = re.findall(r"CREATE DATABASE (\w+);", (DOCKER / "databases.sql").read_text())
    databases += re.findall(r"^database_uri = postgresql\+psycopg2:///(\w+)$", AUTH, re.MULTILINE)
    assert sorted(databases) == sorted(created) == ["mlflow", "mlflow_auth", "prefect"]
    assert "mlflow:5000" in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_the_gpu_file_changes_the_worker_only() -> None:
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())
    assert set(gpu["services"]) == {"worker"}
    (device,) = gpu["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"


def test_both_servers_ask_for_a_login_and_the_worker_has_it() -> None:
    prefect, mlflow, worker = (SERVICES[name] for name in ("prefect", "mlflow", "worker"))
    assert "PREFECT_SERVER_API_AUTH_STRING" in prefect["environment"]
    assert mlflow["command"][2:4] == ["--app-name", "basic-auth"]
    assert {
        "PREFECT_API_AUTH_STRING",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
    } < set(worker["environment"])
    assert "password" not in re.sub("#.*", "", AUTH)
    assert "default_permission = NO_PERMISSIONS" in AUTH


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_the_compose_files_obey_the_specification(file: str, tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, DOCKER / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((DOCKER / file).read_text() + "services_: {}\n")
    assert subprocess.run([*check, wrong], capture_output=True).returncode == 1


def test_compose_accepts_the_files() -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose on this machine")
    command = [docker, "compose", "-f", DOCKER / "compose.yaml", "-f", DOCKER / "compose.gpu.yaml"]
    secrets = dict.fromkeys(SECRETS, "x") | {"PATH": str(Path(docker).parent)}
    done = subprocess.run([*command, "config", "-q"], capture_output=True, text=True, env=secrets)
    assert done.returncode == 0, done.stderr
