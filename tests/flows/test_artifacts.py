"""Artifacts of a run, as a real server has them."""

import json
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect.client.schemas.filters import ArtifactFilter

from flows.artifacts import publish
from mg3d import paths
from mg3d.ledger import Ledger, Reason

RUN = Path("runs/pretrain-0")
CELL = RUN / "evaluate/luna16/frozen-seed0"


def artifacts_of_a_run() -> dict[str, Any]:
    """By key: what a flow that calls publish has on the server."""

    @prefect.flow
    def show() -> None:
        publish(RUN)

    state = show(return_state=True)
    assert state.is_completed(), state.message
    wanted = ArtifactFilter(flow_run_id={"any_": [state.state_details.flow_run_id]})
    with prefect.get_client(sync_client=True) as client:
        return {found.key: found for found in client.read_artifacts(artifact_filter=wanted)}


def write_run() -> None:
    CELL.mkdir(parents=True)
    (RUN / paths.PIPELINE).mkdir()
    (RUN / "results.md").write_text("| task | mode |\n|---|---|\n| luna16 | frozen |\n")
    for folder, run_id in ((RUN, "a1"), (RUN / paths.PIPELINE, "b2"), (CELL, "c3")):
        (folder / paths.MLFLOW_RUN_ID).write_text(f"{run_id}\n")
    of_cell = Ledger("luna16", "candidate", ["x"])
    of_cell.use("x")
    (CELL / paths.RESULT).write_text(json.dumps({"ledger": of_cell.summary()}))
    of_stage = Ledger("convert_volumes", "series", ["a", "b", "c"])
    of_stage.use("a")
    of_stage.quarantine("b", Reason.LOCALIZER)
    of_stage.quarantine("c", Reason.LOCALIZER)
    of_stage.write(paths.PREPARED / "convert_volumes" / "dicom_export")


def test_results_ledger_and_links(children: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    found = artifacts_of_a_run()
    assert set(found) == {"results", "ledger", "mlflow"}
    assert "| luna16 | frozen |" in found["results"].data
    rows = json.loads(found["ledger"].data)
    assert rows == [
        {
            "stage": "convert_volumes/dicom_export",
            "unit": "series",
            "in": 3,
            "used": 1,
            "left out": 2,
            "reasons": "localizer 2",
        },
        {
            "stage": "luna16/frozen-seed0",
            "unit": "candidate",
            "in": 1,
            "used": 1,
            "left out": 0,
            "reasons": "",
        },
    ]
    assert "[pretrain-0](http://127.0.0.1:5000/#/runs/a1)" in found["mlflow"].data
    cell = "pretrain-0/evaluate/luna16/frozen-seed0"
    assert f"[{cell}](http://127.0.0.1:5000/#/runs/c3)" in found["mlflow"].data
    monkeypatch.setenv("MG3D_MLFLOW_UI", "http://elsewhere/")
    assert "(http://elsewhere/#/runs/b2)" in artifacts_of_a_run()["mlflow"].data


def test_without_a_server_of_mlflow_the_ids_are_shown(
    children: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert artifacts_of_a_run() == {}
    write_run()
    assert "pretrain-0/pipeline: `b2` (`make up` shows it)" in artifacts_of_a_run()["mlflow"].data
