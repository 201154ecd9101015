"""The record: one MLflow run per folder, one parent per pipeline, all ended as they ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from mg3d import paths
from mg3d.params import Params, load_params

ROOT = Path(__file__).parents[1]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / paths.PARAMS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_folder_is_one_run_however_often_it_is_opened(here: Path, params: Params) -> None:
    from mg3d import tracking

    folder = here / "runs" / "a"

    def fail() -> None:
        with tracking.track(folder, "pretrain", params) as opened:
            opened.on_metrics(3, {"pretrain/train/mim": 0.25})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    first = tracking.attach(folder)
    store = tracking.client()
    assert store.get_run(first.run_id).info.status == "FAILED"
    with tracking.track(folder, "pretrain", params) as second:
        second.on_metrics(4, {"pretrain/train/mim": 0.125})
    assert second.run_id == first.run_id
    found = store.get_run(first.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["pretrain.batch_size"] == str(params.pretrain.batch_size)
    history = store.get_metric_history(first.run_id, "pretrain/train/mim")
    assert [(m.step, m.value) for m in history] == [(3, 0.25), (4, 0.125)]


TRACK = """
import os, sys, time
from pathlib import Path
from mg3d import tracking
from mg3d.params import load_params
folder, params = Path(sys.argv[1]), load_params(Path(sys.argv[2]))
with tracking.track(folder, "pretrain", params, parent=tracking.pipeline(folder, params)):
    print("open", flush=True)
    sys.stdin.readline()
"""


def opened(folder: Path) -> subprocess.Popen[str]:
    """A process that has a run open until it reads a line."""
    command = [sys.executable, "-c", TRACK, str(folder), str(ROOT / paths.PARAMS)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_a_run_whose_process_is_killed_is_marked_and_goes_on_later(
    here: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    from mg3d import tracking
    from mg3d.cli import reconcile

    dead, alive = paths.RUNS / "dead", paths.RUNS / "alive"
    with tracking.track(paths.RUNS / "done", "pretrain", params):
        pass
    processes = [opened(dead), opened(alive)]

    def status(folder: Path) -> str:
        return str(store.get_run(tracking.attach(folder).run_id).info.status)

    store = tracking.client()
    try:
        assert status(dead) == status(dead / paths.PIPELINE) == "RUNNING"
        processes[0].kill()
        processes[0].wait(timeout=15)
        reconcile(paths.RUNS)
        assert capsys.readouterr().out.endswith("1 MLflow runs were marked KILLED\n")
        for of in (Path(), Path(paths.PIPELINE)):
            assert (status(dead / of), status(alive / of)) == ("KILLED", "RUNNING")
        assert status(paths.RUNS / "done") == "FINISHED"
    finally:
        for process in processes[1:]:
            process.communicate("\n", timeout=60)
    assert status(alive) == status(alive / paths.PIPELINE) == "FINISHED"
    before = tracking.attach(dead).run_id
    with tracking.track(dead, "pretrain", params) as again:
        assert status(dead) == "RUNNING"
    assert again.run_id == before
    assert status(dead) == "FINISHED"


def test_a_pipeline_is_open_while_a_child_is_and_ends_as_they_did(
    here: Path, params: Params
) -> None:
    from mg3d import tracking

    run = paths.RUNS / "pretrain-x"
    parent = tracking.pipeline(run, params)
    one, two = run / "evaluate" / "one", run / "evaluate" / "two"
    of_pipeline = tracking.attach(parent)

    def status() -> str:
        return str(of_pipeline.client.get_run(of_pipeline.run_id).info.status)

    with tracking.track(run, "pretrain", params, parent):
        assert status() == "RUNNING"
    assert status() == "FINISHED"
    with tracking.track(one, "one", params, parent):
        with tracking.track(two, "two", params, parent):
            pass
        assert status() == "RUNNING"
    assert status() == "FINISHED"
    with pytest.raises(ValueError, match="broken"), tracking.track(two, "two", params, parent):
        raise ValueError("broken")
    assert status() == "FAILED"
    with tracking.track(two, "two", params, tracking.pipeline(run, params)):
        assert status() == "RUNNING"
    assert status() == "FINISHED"


def test_a_run_that_is_told_to_stop_is_killed_not_failed(here: Path, params: Params) -> None:
    from mg3d import tracking

    folder = paths.RUNS / "a"
    with pytest.raises(SystemExit), tracking.track(folder, "pretrain", params) as tracked:
        raise SystemExit(143)
    assert tracked.client.get_run(tracked.run_id).info.status == "KILLED"


def test_a_result_is_recorded_with_interval_and_nulls_and_no_zero_for_null(
    here: Path, params: Params
) -> None:
    from mg3d import tracking

    parent, child = here / "runs" / "p", here / "runs" / "p" / "evaluate" / "t"
    with tracking.track(parent, "pretrain", params) as outer:
        pass
    with tracking.track(child, "t", params, parent=parent) as inner:
        headline = {"name": "auroc", "value": 0.75, "interval": [0.5, 0.875], "null": {"a": 0.5}}
        inner.log_result({"task": "t", "headline": headline})
        nothing = {"name": "cider", "value": None, "interval": None, "null": {"b": None}}
        inner.log_result({"task": "u", "headline": nothing})
    found = tracking.client().get_run(inner.run_id).data
    assert found.tags["mlflow.parentRunId"] == outer.run_id
    assert found.metrics == {
        "t/test/auroc": 0.75,
        "t/test/auroc_low": 0.5,
        "t/test/auroc_high": 0.875,
        "t/test/null_a": 0.5,
    }


def test_a_training_and_its_cells_hang_under_one_pipeline(here: Path, params: Params) -> None:
    from mg3d import tracking

    run = paths.RUNS / "pretrain-x"
    folders = [run, *(paths.cell_folder(run, *cell) for cell in params.cells())]
    for folder in folders:
        parent = tracking.pipeline(run, params)
        with tracking.track(folder, folder.name, params, parent):
            pass
    store, pipeline = tracking.client(), tracking.attach(run / paths.PIPELINE).run_id
    assert "mlflow.parentRunId" not in store.get_run(pipeline).data.tags
    assert "params.yaml" in {file.path for file in store.list_artifacts(pipeline)}
    for folder in folders:
        tags = store.get_run(tracking.attach(folder).run_id).data.tags
        assert tags["mlflow.parentRunId"] == pipeline


def test_a_run_says_which_data_it_read_by_dvcs_hashes(here: Path, params: Params) -> None:
    from mg3d import tracking

    assert tracking.dvc_hashes(paths.DATA) == {}
    digest = "0123456789abcdef0123456789abcdef"
    Path("data.dvc").write_text(f"outs:\n- md5: {digest}.dir\n  path: data\n")
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  build_manifest:\n    outs:\n"
        f"    - path: prepared/build_manifest/manifest.parquet\n      md5: {digest}\n"
    )
    with tracking.track(here / "runs" / "a", "pretrain", params) as opened:
        opened.log_datasets(tracking.dvc_hashes(paths.PREPARED), "training")
        opened.log_datasets(tracking.dvc_hashes(paths.DATA), "evaluation")
    inputs = tracking.client().get_run(opened.run_id).inputs.dataset_inputs
    found = {(item.dataset.name, item.dataset.digest, item.tags[0].value) for item in inputs}
    assert found == {
        ("prepared/build_manifest/manifest.parquet", digest, "training"),
        ("data", f"{digest}.dir", "evaluation"),
    }
