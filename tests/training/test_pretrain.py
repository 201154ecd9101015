"""Pre-training as a whole: ranks, resuming, refusing, and what a run's folder holds."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model, write_prepared

from mg3d import paths
from mg3d.training import pretrain as module
from mg3d.training.checkpoint import load_model
from mg3d.training.loop import Stopped
from mg3d.training.pretrain import pretrain
from mg3d.training.record import read_metrics

FIGURES = {"losses.png", "reconstruction.png", "similarity.png"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the text encoder."""
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


def _pretrain(prepared: Path, model: Path, out: Path, **changes: Any) -> Path:
    params = PRETRAIN.model_copy(update=changes)
    return pretrain(prepared, out, CONTRACT, tiny_model(model), OBJECTIVE, params, lambda *_: None)


@pytest.fixture(scope="module")
def whole(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of ten steps."""
    out = tmp_path_factory.mktemp("whole")
    _pretrain(prepared, model, out)
    return out


def _without_speed(out: Path) -> list[dict[str, float]]:
    lines = read_metrics(out / "metrics.jsonl")
    return [{k: v for k, v in line.items() if "samples_per_s" not in k} for line in lines]


def test_ten_steps_are_five_a_kill_and_five(
    prepared: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    (process,) = ranks.start("killed", 1, tmp_path, str(prepared), str(model), "10")
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert [f.name for f in (out / paths.CHECKPOINTS).iterdir()] == ["step-000005"]
    assert _without_speed(out)[-1]["step"] == 6
    final = _pretrain(prepared, model, out)
    assert final == out / paths.CHECKPOINTS / "step-000010"
    for name in (paths.WEIGHTS, paths.TRAINING_STATE):
        expected = load_file(whole / paths.CHECKPOINTS / "step-000010" / name)
        found = load_file(final / name)
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert _without_speed(out) == _without_speed(whole)


def test_sigterm_saves_the_step_and_the_rest_follows_bit_by_bit(
    prepared: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    def terminate(step: int, metrics: dict[str, float]) -> None:
        if step == 6:  # step 7 is the first that can notice
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="after step 7"):
        pretrain(prepared, tmp_path, CONTRACT, tiny_model(model), OBJECTIVE, PRETRAIN, terminate)
    assert signal.getsignal(signal.SIGTERM) is before
    names = sorted(folder.name for folder in (tmp_path / paths.CHECKPOINTS).iterdir())
    assert names == ["step-000005", "step-000007"]
    final = _pretrain(prepared, model, tmp_path)
    expected = load_file(whole / paths.CHECKPOINTS / "step-000010" / paths.WEIGHTS)
    found = load_file(final / paths.WEIGHTS)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_a_run_folder_holds_the_record(prepared: Path, whole: Path) -> None:
    assert {file.name for file in (whole / paths.FIGURES).iterdir()} == FIGURES
    last = [line for line in _without_speed(whole) if line["step"] == 10]
    keys = set().union(*last) - {"step"}
    train = {f"pretrain/train/{name}" for name in ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")}
    assert train | {"pretrain/train/total", "pretrain/train/learning_rate"} <= keys
    assert {
        "pretrain/validation/mim",
        "pretrain/validation/mlm_accuracy",
        "pretrain/validation/image_to_text_recall_at_1",
    } <= keys
    ledger = json.loads((whole / paths.LEDGER_SUMMARY).read_text())
    assert ledger["inputs"] == ledger["used"] > PRETRAIN.batch_size
    names = sorted(folder.name for folder in (whole / paths.CHECKPOINTS).iterdir())
    assert names == ["step-000005", "step-000010"]
    loaded = load_model(whole / paths.CHECKPOINTS / "step-000010")
    assert (loaded.step, loaded.contract) == (10, CONTRACT)
    volume = torch.rand(2, 1, *CONTRACT.shape_voxels)
    with torch.no_grad():
        assert loaded.model.encode_image(volume).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_a_finished_run_does_no_work(
    prepared: Path, model: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("a volume was read")

    with monkeypatch.context() as patch:
        patch.setattr(module, "account", work)
        before = {f: f.stat().st_mtime_ns for f in whole.rglob("*")}
        assert _pretrain(prepared, model, whole).name == "step-000010"
        assert {f: f.stat().st_mtime_ns for f in whole.rglob("*")} == before


def test_lost_figures_are_drawn_again(prepared: Path, model: Path, whole: Path) -> None:
    for file in (whole / paths.FIGURES).iterdir():
        file.unlink()
    _pretrain(prepared, model, whole)
    assert {file.name for file in (whole / paths.FIGURES).iterdir()} == FIGURES


def test_another_run_in_the_folder_is_refused(prepared: Path, model: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"pretrain.learning_rate: 0.001 -> 0.5\n.*another folder"):
        _pretrain(prepared, model, whole, learning_rate=0.5)


def test_a_forced_run_goes_on_and_writes_down_what_changed(
    prepared: Path, model: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / paths.CHECKPOINTS / "step-000010")
    changed = PRETRAIN.model_copy(update={"learning_rate": 0.5, "num_steps": 6})
    arguments = (prepared, out, CONTRACT, tiny_model(model), OBJECTIVE, changed, lambda *_: None)
    with pytest.raises(ValueError, match=f"use mg3d pretrain --resume {out} --force"):
        pretrain(*arguments)
    assert pretrain(*arguments, force=True) == out / paths.CHECKPOINTS / "step-000006"
    (line,) = (out / "forced.jsonl").read_text().splitlines()
    changes = ["pretrain.learning_rate: 0.001 -> 0.5", "pretrain.num_steps: 10 -> 6"]
    assert json.loads(line) == {"step": 5, "changes": changes}
    assert pretrain(*arguments).name == "step-000006"  # it is a run of the new params now


def test_half_precision_and_a_single_term(prepared: Path, model: Path, tmp_path: Path) -> None:
    off = dict.fromkeys(("mlm", "sfr", "cml", "dfa", "ssm", "itc"), 0.0)
    mim = OBJECTIVE.model_copy(update={f"{term}_weight": weight for term, weight in off.items()})
    for name, objective, figures in (
        ("all", OBJECTIVE, FIGURES),
        ("mim", mim, FIGURES - {"similarity.png"}),
    ):
        params = PRETRAIN.model_copy(update={"num_steps": 1, "precision": "bfloat16"})
        out = tmp_path / name
        pretrain(prepared, out, CONTRACT, tiny_model(model), objective, params, lambda *_: None)
        assert {file.name for file in (out / paths.FIGURES).iterdir()} == figures
        weights = load_file(out / paths.CHECKPOINTS / "step-000001" / paths.WEIGHTS)
        assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}
        validation = [k for line in _without_speed(out) for k in line if "/validation/" in k]
        assert ("pretrain/validation/mlm_accuracy" in validation) == (name == "all")


def test_onednn_is_left_out_where_its_gradients_are_wrong() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    layer, volume = torch.nn.Conv3d(32, 16, 3, padding=1), torch.randn(4, 32, 2, 1, 1)
    layer(volume).square().mean().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.clone()
    before = torch.backends.mkldnn.enabled
    with module._written_gradients(cpu, "bfloat16"):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(volume)
        out.float().square().mean().backward()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.05, atol=1e-4)
    assert torch.backends.mkldnn.enabled == before
    with module._written_gradients(cpu, "float32"):
        assert torch.backends.mkldnn.enabled == before


def test_a_damaged_volume_is_quarantined_and_the_rest_trains(model: Path, tmp_path: Path) -> None:
    write_prepared(tmp_path / "prepared")
    splits = json.loads((tmp_path / "prepared/build_manifest/splits.json").read_text())
    study_id = splits["train"][0]
    file = next((tmp_path / "prepared").rglob(f"{study_id}.npy"))
    file.write_bytes(file.read_bytes()[:-100])
    _pretrain(tmp_path / "prepared", model, tmp_path / "out", num_steps=1)
    ledger = json.loads((tmp_path / "out" / paths.LEDGER_SUMMARY).read_text())
    assert ledger["reasons"] == {"checksum_mismatch": 1}
    assert study_id in (tmp_path / "out" / paths.LEDGER_ENTRIES).read_text()


def test_a_batch_that_the_data_cannot_fill_is_refused(
    prepared: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"batch_size 64 exceeds the \d+ training samples"):
        _pretrain(prepared, model, tmp_path, batch_size=64)
