"""A person's way through the UI: `make up`, the form of evaluate, Run, and what the run shows."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
CHECKPOINT = Path("runs/tiny/checkpoints/step-000001")


def write_project(folder: Path) -> None:
    """A project as after pre-training a tiny model, with one downstream data set."""
    from downstream.conftest import _write
    from downstream.layouts import write_stoic

    from mg3d import paths
    from mg3d.ledger import Ledger, Reason
    from mg3d.params import VolumeContract, load_params, save_params

    for name in ("flows", "params"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("prefect.yaml", "supervisord.conf"):
        shutil.copy(ROOT / name, folder)
    contract = VolumeContract(spacing_mm=(6.0, 6.0, 6.0), shape_voxels=(32, 32, 32))
    save_params(
        load_params(ROOT / "params.yaml", {f"contract.{k}": v for k, v in contract}),
        folder / "params.yaml",
    )
    written = _write(folder / CHECKPOINT.parent, contract, "itc")
    assert written == folder / CHECKPOINT
    write_stoic(paths.task_data("stoic2021", folder / paths.DATA), num_cases=24)
    ledger = Ledger("convert_volumes", "series", ["a", "b", "c"])
    ledger.use("a")
    ledger.use("b")
    ledger.quarantine("c", Reason.LOCALIZER)
    ledger.write(folder / paths.PREPARED / "convert_volumes" / "dicom_export")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`python -m flows.servers up` on free ports; its environment."""
    project = tmp_path_factory.mktemp("up")
    write_project(project)
    ports = {name: str(free_port()) for name in ("PREFECT_PORT", "MLFLOW_PORT", "WORKER_PORT")}
    path = os.pathsep.join([str(project), str(ROOT)])
    left_out = {"PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {**ports, "PYTHONPATH": path, "MG3D_ROOT": str(project)}

    def servers(verb: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flows.servers", verb]
        return subprocess.run(command, cwd=project, env=environment, text=True, capture_output=True)

    try:
        done = servers("up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"http://127.0.0.1:{ports['PREFECT_PORT']}/deployments" in done.stdout
        yield ports
    finally:
        assert servers("down").returncode == 0


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # as root, which CI is, Chromium starts without its sandbox only
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1400, "height": 1200})
        opened.set_default_timeout(120_000)
        yield opened
        browser.close()


def choose(page: Page, field: str, choice: str) -> None:
    """From the list of a field of the form."""
    found = page.locator(".schema-form-property").filter(has_text=f"{field} (Optional)").last
    found.locator(".p-select-button__control").focus()
    page.keyboard.press("Space")
    page.locator(".p-select-option").filter(has_text=choice).first.click()
    page.get_by_text("Parameters", exact=True).first.click()  # closes the list


def test_a_run_is_started_from_the_form_completes_and_shows_its_artifacts(
    up: dict[str, str], page: Page
) -> None:
    prefect, mlflow = (
        f"http://127.0.0.1:{up[name]}" for name in ("PREFECT_PORT", "MLFLOW_PORT")
    )  # fmt: skip
    page.goto(f"{prefect}/deployments")
    for name in ("prepare", "pretrain", "evaluate", "pipeline"):
        expect(page.get_by_role("link", name=name, exact=True).first).to_be_visible(timeout=120_000)
    page.get_by_role("link", name="evaluate", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run").first.click()
    page.locator("textarea").first.fill(str(CHECKPOINT))
    choose(page, "tasks", "stoic2021")
    choose(page, "modes", "frozen")
    name = page.locator(".flow-run-name-input input").input_value()
    page.get_by_role("button", name="Submit").click()

    page.get_by_role("link", name=name).first.click()
    expect(page.locator(".state-badge").first).to_have_text("Completed", timeout=900_000)
    page.locator("li#artifacts").click()
    for key, shown in {
        "results": "covid_auroc",  # a row, whose nulls stand beside it
        "ledger": "stoic2021/frozen-seed0",
        "mlflow": "tiny/evaluate/stoic2021/frozen-seed0",
    }.items():
        page.locator(".artifact-card").filter(has_text=key).first.click()
        expect(page.get_by_text(shown).first).to_be_visible(timeout=120_000)
        if key == "mlflow":
            link = page.get_by_role("link", name=shown).first.get_attribute("href")
        page.go_back()
        page.locator("li#artifacts").click()
    assert link is not None
    assert link.startswith(f"{mlflow}/#/")
    page.goto(link)  # where its metrics are
    expect(page.get_by_text("stoic2021/frozen-seed0").first).to_be_visible(timeout=120_000)
