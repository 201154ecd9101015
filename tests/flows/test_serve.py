"""prefect.yaml reaches a real server, with forms that are typed and described."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from flows import serve
from mg3d.params import Mode, TaskName, load_params, resolve

ROOT = Path(__file__).parents[2]
FLOWS = {"pipeline", "prepare", "pretrain", "evaluate", "ablate", "scale", "reconcile"}


@pytest.fixture(scope="module")
def deployed(_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Deployments by name, as the server has them after `flows.serve` was started in a project."""
    project = tmp_path_factory.mktemp("project")
    for name in ("flows", "params"):
        shutil.copytree(ROOT / name, project / name)
    for name in ("params.yaml", "prefect.yaml"):
        shutil.copy(ROOT / name, project)
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("MG3D_ROOT", str(project))
        patch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
        serve.deploy()
        with prefect.get_client(sync_client=True) as client:
            yield {deployment.name: deployment for deployment in client.read_deployments()}
    assert Path.cwd() == before


def fields(deployment: Any) -> dict[str, Any]:
    found: dict[str, Any] = deployment.parameter_openapi_schema["properties"]
    return found


def test_every_flow_is_deployed_once_with_words_and_tags(deployed: dict[str, Any]) -> None:
    assert set(deployed) == FLOWS
    for name, deployment in deployed.items():
        assert deployment.entrypoint == f"flows/{name}.py:{name}"
        assert deployment.work_pool_name == "mg3d"
        assert "mg3d" in deployment.tags
        assert deployment.description
        for field in fields(deployment).values():
            assert field["description"]


def test_forms_offer_what_there_is(deployed: dict[str, Any]) -> None:
    profiles = ["params.yaml", "params/swin_b.yaml", "params/swin_l.yaml"]
    for name in FLOWS - {"reconcile"}:  # which is told nothing
        form = fields(deployed[name])
        assert form["params"]["enum"] == profiles
        assert form["params"]["default"] == "params.yaml"
        assert form["overrides"]["type"] == "object"
    evaluate, pipeline = fields(deployed["evaluate"]), fields(deployed["pipeline"])
    for form in (evaluate, pipeline):
        assert form["tasks"]["items"]["enum"] == list(TaskName.__args__)
        assert form["modes"]["items"]["enum"] == list(Mode.__args__)
    assert {"type": "integer"} in pipeline["seed"]["anyOf"]
    assert evaluate["seeds"]["items"] == {"type": "integer"}
    assert deployed["evaluate"].parameter_openapi_schema["required"] == ["checkpoint"]


def test_schedules_are_there_and_off(deployed: dict[str, Any]) -> None:
    schedules = {name: deployment.schedules for name, deployment in deployed.items()}
    assert {name for name, found in schedules.items() if found} == {"pipeline", "prepare"}
    assert not any(schedule.active for found in schedules.values() for schedule in found)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("pipeline", {"params": "runs/mine.yaml"}, "is not one of"),
        ("pipeline", {"tasks": ["luna17"]}, "'luna17' is not one of"),
        ("pretrain", {"seed": "zero"}, "is not valid under any of the given schemas"),
        ("pretrain", {"overrides": ["pretrain.seed"]}, "is not of type 'object'"),
        ("evaluate", {}, "'checkpoint' is a required property"),
    ],
)
def test_the_server_refuses_what_the_form_does_not_offer(
    deployed: dict[str, Any], name: str, parameters: dict[str, Any], message: str
) -> None:
    with (
        prefect.get_client(sync_client=True) as client,
        pytest.raises(PrefectHTTPStatusError) as caught,
    ):
        client.create_flow_run_from_deployment(deployed[name].id, parameters=parameters)
    assert message in caught.value.response.text


@pytest.mark.timeout(400)
def test_the_worker_takes_a_run_and_its_overrides(deployed: dict[str, Any]) -> None:
    """A contract that DVC does not read is refused, so the run ends before any data is needed.

    The worker deploys again, which changes nothing.
    """
    overrides = {"contract.window_hu": [-900, 900]}
    with prefect.get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            deployed["prepare"].id, parameters={"overrides": overrides}
        )
        with worker(Path.cwd()):
            deadline = time.monotonic() + 240
            while not run.state.is_final() and time.monotonic() < deadline:
                time.sleep(0.5)
                run = client.read_flow_run(run.id)
    assert run.state.is_failed()
    resolved = resolve(Path("params.yaml"), overrides)
    assert resolved.parent == Path("runs/params")
    assert load_params(resolved).contract.window_hu == (-900, 900)
    assert f"contract of {resolved} differs from params.yaml" in run.state.message


@contextmanager
def worker(project: Path) -> Iterator[None]:
    """`python -m flows.serve` in ``project``, ended with all that it started."""
    environment = {"PYTHONPATH": str(project), "PREFECT_WORKER_WEBSERVER_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.serve"], cwd=project, env=os.environ | environment
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        # Prefect's worker may miss a signal while the process of a run ends
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        process.kill()
        process.wait()
