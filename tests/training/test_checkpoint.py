"""Checkpoints are whole or absent, survive damage, and give back every bit."""

import copy
import errno
import itertools
import os
import resource
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mg3d import paths
from mg3d.fingerprint import Fingerprint
from mg3d.params import Model, Objective, TextEncoder, VisionEncoder, VolumeContract
from mg3d.training import checkpoint

CONTRACT = VolumeContract(spacing_mm=(5.0, 5.0, 5.0), shape_voxels=(32, 32, 32))
TINY = Model(
    vision=VisionEncoder(embed_dim=6, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), window_voxels=2),
    text=TextEncoder(max_tokens=32),
    num_fusion_layers=1,
)
MIM_ONLY = Objective(
    mlm_weight=0, sfr_weight=0, cml_weight=0, dfa_weight=0, ssm_weight=0, mim_block_voxels=8
)


def _net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    groups = [{"params": net[0].parameters(), "lr": 0.1}, {"params": [*net[2].parameters()]}]
    return net, torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        net(torch.rand(5, 3)).square().mean().backward()
        optimizer.step()


def _save(
    folder: Path,
    step: int,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    model_params: Model = TINY,
) -> Path:
    return checkpoint.save(
        folder,
        step=step,
        model=net,
        optimizer=optimizer,
        contract=CONTRACT,
        model_params=model_params,
        objective_params=MIM_ONLY,
        fingerprint=Fingerprint({"pretrain": {"seed": 1}}),
        rng=torch.get_rng_state()[None],
        position={"samples_seen": 8 * step},
        num_kept=2,
    )


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    net, optimizer = _net()
    _train(net, optimizer, 5)
    folder = _save(tmp_path, 5, net, optimizer)
    assert folder == tmp_path / "step-000005"
    _train(net, optimizer, 5)

    torch.manual_seed(123)
    resumed, its_optimizer = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        None,
    )
    groups = [{"params": resumed[0].parameters()}, {"params": resumed[2].parameters()}]
    its_optimizer = torch.optim.AdamW(groups)
    checkpoint.restore(folder, resumed, its_optimizer)
    state = checkpoint.training_state(folder)
    torch.set_rng_state(state.rng[0])
    _train(resumed, its_optimizer, 5)

    assert (state.step, state.position) == (5, {"samples_seen": 40})
    assert state.fingerprint == Fingerprint({"pretrain": {"seed": 1}})
    for key, value in net.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_the_weights_file_says_what_it_is(tmp_path: Path) -> None:
    folder = _save(tmp_path, 3, *_net())
    with safe_open(folder / paths.WEIGHTS, "pt") as file:
        header = file.metadata()
    assert VolumeContract.model_validate_json(header["contract"]) == CONTRACT
    assert Model.model_validate_json(header["model"]) == TINY
    assert Objective.model_validate_json(header["objective"]) == MIM_ONLY
    assert header["step"] == "3"
    assert header["fingerprint"] == Fingerprint({"pretrain": {"seed": 1}}).digest
    suffixes = {file.suffix for file in folder.iterdir()}
    assert suffixes == {".safetensors", ".json", ""}


def test_the_last_ones_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    for step in (999998, 999999, 1000000):
        _save(tmp_path, step, *_net())
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-1000000"


@pytest.mark.parametrize("name", ["weights.safetensors", "training_state.safetensors"])
def test_a_flipped_bit_falls_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path, 1, *_net())
    newest = _save(tmp_path, 2, *_net())
    content = bytearray((newest / name).read_bytes())
    content[-5] ^= 1
    (newest / name).write_bytes(content)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000001"
    assert f"{name} has another checksum" in capsys.readouterr().err
    _save(tmp_path, 2, *_net())  # the resumed training comes by again
    assert checkpoint.latest(tmp_path) == newest


def test_missing_files_fall_back_and_nothing_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    older, newest = _save(tmp_path, 1, *_net()), _save(tmp_path, 2, *_net())
    (newest / paths.WEIGHTS).unlink()
    assert checkpoint.latest(tmp_path) == older
    (older / checkpoint.CHECKSUMS).unlink()
    assert checkpoint.latest(tmp_path) is None


def test_an_interrupted_write_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _save(tmp_path, 1, *_net())
    before = {file.name: file.read_bytes() for file in old.iterdir()}

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "file_sha256", crash)  # after the weights, before the rest
        with pytest.raises(KeyboardInterrupt):
            _save(tmp_path, 2, *_net())
    assert checkpoint.latest(tmp_path) == old
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before
    assert (tmp_path / ".step-000002" / paths.WEIGHTS).exists()
    _save(tmp_path, 2, *_net())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_while_saving(folder: Path, at: int, net: nn.Module, optimizer: Any) -> bool:
    """Save step 5 in a child that kills itself at its ``at``-th touch of the disk; if it did."""
    child = os.fork()
    if not child:
        touches = itertools.count(1)

        def dying(function: Any) -> Any:
            def touch(*arguments: Any) -> Any:
                if next(touches) == at:
                    if function is save_file:  # half a file
                        save_file(*arguments)
                        os.truncate(arguments[1], arguments[1].stat().st_size // 2)
                    _die()
                return function(*arguments)

            return touch

        checkpoint.save_file = dying(save_file)
        os.fsync = dying(os.fsync)
        Path.rename = dying(Path.rename)  # type: ignore[method-assign]
        Path.write_text = dying(Path.write_text)  # type: ignore[method-assign]
        shutil.rmtree = dying(shutil.rmtree)
        with suppress(BaseException):
            _save(folder, 5, net, optimizer)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_touch_of_the_disk_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Two files, two texts, fsyncs, the rename, the removal of the oldest: each a last moment."""
    net, optimizer = _net()
    for step in (1, 2, 3):
        _train(net, optimizer, 1)
        _save(tmp_path / "before", step, net, optimizer)
    _train(net, optimizer, 2)
    at_five = copy.deepcopy((net.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    _train(net, optimizer, 3)
    expected = copy.deepcopy(net.state_dict())

    found_steps = []
    for at in itertools.count(1):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(tmp_path / "before", folder)
        net.load_state_dict(at_five[0])
        optimizer.load_state_dict(at_five[1])
        torch.set_rng_state(at_five[2])
        if not _killed_while_saving(folder, at, net, optimizer):
            break
        last = checkpoint.latest(folder)
        assert last is not None
        resumed, its_optimizer = _net()
        checkpoint.restore(last, resumed, its_optimizer)
        state = checkpoint.training_state(last)
        torch.set_rng_state(state.rng[0])
        for step in range(state.step + 1, 9):
            _train(resumed, its_optimizer, 1)
            if step == 5:
                _save(folder, 5, resumed, its_optimizer)
        for key, value in expected.items():
            assert torch.equal(value, resumed.state_dict()[key]), (at, key)
        names = {f.name for f in folder.iterdir()}
        assert {"step-000003", "step-000005"} <= names
        assert not any(name.startswith(".") for name in names)
        found_steps.append(state.step)
    assert found_steps == [3] * 10 + [5] * 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_one_and_no_litter(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _save(tmp_path, 1, *_net())
    before = {file.name: file.read_bytes() for file in old.iterdir()}

    def full(tensors: object, file: Path, *_: object) -> None:
        file.write_bytes(b"part of it")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(
            OSError, match=rf"step 2 was not written: .*{os.strerror(number)}.*000001"
        ):
            _save(tmp_path, 2, *_net())
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]
    assert {file.name: file.read_bytes() for file in old.iterdir()} == before
    assert _save(tmp_path, 2, *_net()) == checkpoint.latest(tmp_path)


def test_a_write_that_the_kernel_cuts_off_is_an_error(tmp_path: Path) -> None:
    """The real thing: no file may grow beyond 512 bytes."""
    old = _save(tmp_path, 1, *_net())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(OSError, match=r"step 2 was not written: .*File too large"):
            _save(tmp_path, 2, *_net())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.latest(tmp_path) == old


def _snapshot(step: int, net: nn.Module, optimizer: torch.optim.Optimizer) -> checkpoint.Snapshot:
    return checkpoint.snapshot(
        step=step,
        model=net,
        optimizer=optimizer,
        contract=CONTRACT,
        model_params=TINY,
        objective_params=MIM_ONLY,
        fingerprint=Fingerprint({}),
        rng=torch.get_rng_state()[None],
        position={},
    )


def test_training_goes_on_while_a_snapshot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, running = threading.Event(), []

    def slow(tensors: Any, *arguments: Any) -> None:
        running.append(threading.current_thread().name)
        assert go.wait(30)
        save_file(tensors, *arguments)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    net, optimizer = _net()
    _train(net, optimizer, 3)
    expected = copy.deepcopy(net.state_dict())
    writer = checkpoint.Writer(tmp_path, 2)
    writer.submit(_snapshot(3, net, optimizer))
    _train(net, optimizer, 2)  # while the disk does nothing
    writer.check()
    assert checkpoint.latest(tmp_path) is None
    second = threading.Thread(target=writer.submit, args=(_snapshot(5, net, optimizer),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # one at a time
    assert len(running) == 1
    go.set()
    second.join(30)
    writer.wait()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-000003", "step-000005"]
    assert not any("MainThread" in name for name in running)
    resumed, its_optimizer = _net()
    checkpoint.restore(tmp_path / "step-000003", resumed, its_optimizer)
    for key, value in expected.items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_what_went_wrong_while_writing_is_raised_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    for method in ("check", "wait", "__exit__"):
        writer = checkpoint.Writer(tmp_path / "checkpoints", 2)
        writer.submit(_snapshot(1, *_net()))
        deadline = time.monotonic() + 30
        while not writer._pending.done() and time.monotonic() < deadline:  # type: ignore[union-attr]
            time.sleep(0.01)
        with pytest.raises(OSError, match="checkpoints"):
            getattr(writer, method)(*[None] * (method == "__exit__"))
        writer.wait()


def test_everything_is_on_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1]
    )
    folder = _save(tmp_path, 1, *_net())
    renamed = events.index("rename")
    synced = {Path(event).name for event in events[:renamed]}
    assert synced == {file.name for file in folder.iterdir()} | {".step-000001"}
    assert events[renamed + 1] == str(tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = _save(tmp_path, 1, *_net())
    other = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    with pytest.raises(ValueError, match=r"does not fit the model.*unexpected"):
        checkpoint.restore(folder, other, torch.optim.AdamW(other.parameters()))


def test_coverage_counts() -> None:
    module = nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(4), "extra": torch.ones(1)}
    coverage = checkpoint.load_matching(module, weights)
    assert coverage == checkpoint.Coverage(loaded=1, missing=0, unexpected=1, mismatched=1)
    assert coverage.fraction == 0.5
    assert torch.equal(module.weight, torch.ones(3, 2))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A real model and its checkpoint."""
    from mg3d.models.mg3d import MG3D

    torch.manual_seed(1)
    model = MG3D(TINY, MIM_ONLY)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    return model, _save(tmp_path_factory.mktemp("checkpoints"), 7, model, optimizer)


def test_load_model_gives_the_model_back(real: tuple[nn.Module, Path]) -> None:
    model, folder = real
    torch.manual_seed(2)
    loaded = checkpoint.load_model(folder)
    assert (loaded.step, loaded.contract) == (7, CONTRACT)
    assert (loaded.model_params, loaded.objective_params) == (TINY, MIM_ONLY)
    assert not loaded.model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key]), key


def test_load_encoder_gives_the_encoder_and_its_coverage(real: tuple[nn.Module, Path]) -> None:
    model, folder = real
    encoder, coverage, contract = checkpoint.load_encoder(folder)
    assert contract == CONTRACT
    assert not encoder.training
    num_tensors = len(encoder.state_dict())
    assert coverage == checkpoint.Coverage(num_tensors, missing=0, unexpected=0, mismatched=0)
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = model.eval().vision_encoder.features(volume)
        assert torch.equal(encoder.features(volume), expected)


@pytest.mark.parametrize("name", ["swin", "unet3d", "dynunet"])
def test_each_kind_of_encoder_comes_back_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Whole, alone and exported; and is refused where the params name another kind."""
    from mg3d.models.mg3d import MG3D

    params = TINY.model_copy(update={"vision": TINY.vision.model_copy(update={"name": name})})
    torch.manual_seed(0)
    model = MG3D(params, MIM_ONLY).eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    folder = checkpoint.save(
        tmp_path / "checkpoints",
        step=1,
        model=model,
        optimizer=optimizer,
        contract=CONTRACT,
        model_params=params,
        objective_params=MIM_ONLY,
        fingerprint=Fingerprint({}),
        rng=torch.zeros(1, 8, dtype=torch.uint8),
        position={},
        num_kept=2,
    )
    volume = torch.rand(1, 1, 64, 32, 32)
    exported = checkpoint.export_encoder(folder, tmp_path / "exported")
    whole = checkpoint.load_model(folder)
    assert whole.model_params == params
    encoders = [whole.model.vision_encoder]
    encoders += [checkpoint.load_encoder(source)[0] for source in (folder, exported)]
    with torch.no_grad():
        expected = model.vision_encoder.features(volume)
        for encoder in encoders:
            assert type(encoder) is type(model.vision_encoder)
            assert torch.equal(encoder.features(volume), expected)
    other = "unet3d" if name == "swin" else "swin"
    with safe_open(folder / paths.WEIGHTS, "pt") as file:
        header = file.metadata()
    renamed = params.model_copy(update={"vision": params.vision.model_copy(update={"name": other})})
    weights = load_file(folder / paths.WEIGHTS)
    save_file(weights, folder / paths.WEIGHTS, header | {"model": renamed.model_dump_json()})
    with pytest.raises(ValueError, match=r"covers 0% of the vision encoder"):
        checkpoint.load_encoder(folder)


def test_the_merging_order_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    """The tensors of both orders look alike: only the header tells which features are meant."""
    from mg3d.models.mg3d import MG3D
    from mg3d.models.vision import LegacyPatchMerging, SwinEncoder

    vision = TINY.vision.model_copy(update={"merging": "legacy"})
    legacy = TINY.model_copy(update={"vision": vision})
    model = MG3D(legacy, MIM_ONLY).eval()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    folder = _save(tmp_path, 1, model, optimizer, legacy)
    exported = checkpoint.export_encoder(folder, tmp_path / "exported")
    with safe_open(exported / paths.WEIGHTS, "pt") as file:
        assert Model.model_validate_json(file.metadata()["model"]).vision.merging == "legacy"
    fixed = SwinEncoder(TINY.vision).eval()
    fixed.load_state_dict(model.vision_encoder.state_dict())
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        expected = model.vision_encoder.tokens(volume)
        for encoder in (
            checkpoint.load_model(folder).model.vision_encoder,
            checkpoint.load_encoder(folder)[0],
            checkpoint.load_encoder(exported)[0],
        ):
            assert isinstance(encoder.layers1[0].downsample, LegacyPatchMerging)
            assert torch.equal(encoder.tokens(volume), expected)
        assert (fixed.tokens(volume) - expected).abs().max() > 0.1


def test_an_encoder_that_is_not_there_is_refused(
    real: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "step-000007"
    shutil.copytree(real[1], folder)
    with safe_open(folder / paths.WEIGHTS, "pt") as file:
        header = file.metadata()
    weights = load_file(folder / paths.WEIGHTS)
    keys = [key for key in weights if key.startswith("vision_encoder.")]
    for key in keys[: len(keys) // 10]:
        weights[f"renamed.{key}"] = weights.pop(key)
    save_file(weights, folder / paths.WEIGHTS, header)
    with pytest.raises(ValueError, match=r"covers 9\d% of the vision encoder.*95% are needed"):
        checkpoint.load_encoder(folder)
    with pytest.raises(ValueError, match="does not fit the model"):
        checkpoint.load_model(folder)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no readable weights\.safetensors"):
        checkpoint.load_encoder(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / paths.WEIGHTS)
    with pytest.raises(ValueError, match="no volume contract"):
        checkpoint.load_encoder(tmp_path)
