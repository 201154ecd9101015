"""Templates for Slurm and Kubernetes: linted, valid, and the Slurm one run on stand-in commands."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mg3d.cli import app
from mg3d.launch import RESUMABLE, Nodes

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
BATCH = DEPLOY / "slurm/pretrain.sbatch"


def _lint(*command: str | Path) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_and_yaml_are_lint_free() -> None:
    _lint("shellcheck", BATCH)
    _lint(
        *("yamllint", "--strict", "--config-file", DEPLOY / "yamllint.yaml"),
        *(ROOT / "docker", DEPLOY),
    )


@pytest.mark.parametrize(
    "file", sorted((DEPLOY / "kubernetes").glob("*.yaml")), ids=lambda f: f.name
)
def test_kubernetes_would_accept_the_objects(file: Path, tmp_path: Path) -> None:
    _lint("kubernetes-validate", "--strict", file)
    wrong = tmp_path / file.name
    wrong.write_text(file.read_text().replace("spec:", "specs:"))
    with pytest.raises(AssertionError):
        _lint("kubernetes-validate", "--strict", wrong)


def _objects() -> dict[str, dict[str, Any]]:
    files = (DEPLOY / "kubernetes").glob("*.yaml")
    found = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    return {each["kind"]: each for each in found}


def test_pods_meet_at_the_name_that_pod_0_has() -> None:
    objects = _objects()
    job, service = objects["Job"], objects["Service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    command = typer.main.get_command(app).commands["pretrain"]  # type: ignore[attr-defined]
    assert set(options) <= {name for each in command.params for name in each.opts}
    nodes = Nodes(int(options["--nnodes"]), 0, options["--rdzv-endpoint"])
    assert nodes.count == job["spec"]["completions"] == job["spec"]["parallelism"]
    host, port = nodes.endpoint.split(":")
    assert host == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert [each["port"] for each in service["spec"]["ports"]] == [int(port)]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    (claim,) = (v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v)
    assert claim["claimName"] == objects["PersistentVolumeClaim"]["metadata"]["name"]


def test_pods_have_no_root_no_secret_and_a_code_to_go_on() -> None:
    job = _objects()["Job"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert all("value" not in each or each["name"] == "HOME" for each in container["env"])
    assert container["envFrom"] == [{"secretRef": {"name": "mg3d"}}]
    codes = {
        rule["action"]: rule["onExitCodes"]["values"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert codes == {"Ignore": [RESUMABLE], "FailJob": [2]}


STANDINS = {
    "scontrol": """case "$1" in
show) printf 'alpha\\nbeta\\n' ;;
*) echo "$@" >> scontrol.log ;;
esac""",
    "srun": """shift # its own option
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || code=$?; done
exit ${code:-0}""",
    "mg3d": 'echo "$@" >> mg3d.log; exit "$MG3D_CODE"',
}


@pytest.mark.parametrize("code", [0, 1, RESUMABLE])
def test_a_slurm_job_starts_each_node_and_is_requeued_if_told_to_stop(
    code: int, tmp_path: Path
) -> None:
    commands = tmp_path / "venv/bin"
    commands.mkdir(parents=True)
    for name, body in STANDINS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    (commands / "activate").write_text(f"PATH={commands}:$PATH\n")
    environment = {
        "PATH": os.environ["PATH"],
        "MG3D_VENV": str(tmp_path / "venv"),
        "MG3D_CODE": str(code),
        "SLURM_JOB_ID": "4711",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "alpha,beta",
    }
    done = subprocess.run(
        ["bash", BATCH], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "mg3d.log").read_text().splitlines() == [
        f"pretrain --nnodes 2 --node-rank {rank} --rdzv-endpoint alpha:24711" for rank in (0, 1)
    ]
    requeued = (tmp_path / "scontrol.log").exists()
    assert requeued == (code == RESUMABLE)
