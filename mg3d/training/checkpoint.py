"""Checkpoints: folders that are whole or absent, read without pickle.

``step-000150/`` holds
- ``weights.safetensors``: the model; its metadata carry contract, model and objective sections as
  JSON, the step and the fingerprint's digest, so this file alone can be deployed;
- ``training_state.safetensors`` and ``.json``: optimizer, random state, position, fingerprint;
- ``SHA256SUMS``: as ``sha256sum -c`` reads it.

A folder is written under a temporary name beside its final one, fsynced and renamed.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mg3d import paths
from mg3d.fingerprint import Fingerprint, file_sha256
from mg3d.params import Model, Objective, VolumeContract
from mg3d.training.distributed import is_main
from mg3d.training.parallel import laid_out_as, whole

if TYPE_CHECKING:  # these import monai, which takes seconds
    from mg3d.models.mg3d import MG3D
    from mg3d.models.vision import VolumeEncoder

CHECKSUMS = "SHA256SUMS"
STATE_JSON = Path(paths.TRAINING_STATE).with_suffix(".json").name
RNG = "rng"
OPTIMIZER = "optimizer"
MIN_COVERAGE = 0.95
ENCODER_PREFIX = "vision_encoder."  # as in the published weights (spec/model 2.3)


@dataclass(frozen=True)
class TrainingState:
    """What continues a training beside the weights."""

    step: int
    rng: Tensor  # uint8 [ranks, bytes]
    position: Mapping[str, Any]
    fingerprint: Fingerprint


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was trained, in eval mode, with what it must be used with."""

    model: "MG3D"
    contract: VolumeContract
    model_params: Model
    objective_params: Objective
    step: int
    coverage: "Coverage"


@dataclass(frozen=True)
class Coverage:
    """How well a file's tensors fit a module's, by name and shape."""

    loaded: int
    missing: int
    unexpected: int
    mismatched: int

    @property
    def fraction(self) -> float:
        """Loaded tensors / tensors of the module."""
        return self.loaded / max(1, self.loaded + self.missing + self.mismatched)

    def as_json(self) -> dict[str, float]:
        """The counts, and the share that was loaded in per cent."""
        return {**asdict(self), "percent": round(100 * self.fraction, 1)}

    def __str__(self) -> str:
        return (
            f"{self.loaded} loaded, {self.missing} missing, "
            f"{self.unexpected} unexpected, {self.mismatched} mismatched"
        )


@dataclass(frozen=True)
class Snapshot:
    """A training at one moment, in host memory: going on training does not change it."""

    step: int
    weights: Mapping[str, Tensor]
    header: Mapping[str, str]
    tensors: Mapping[str, Tensor]  # optimizer and random state
    state: Mapping[str, Any]  # JSON values


def snapshot(
    *,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    contract: VolumeContract,
    model_params: Model,
    objective_params: Objective,
    fingerprint: Fingerprint,
    rng: Tensor,
    position: Mapping[str, Any],
) -> Snapshot:
    """Copy what a checkpoint holds. The only part of saving that training waits for.

    To be called on all ranks, which put shards together one tensor at a time; the copy is rank 0's,
    that of the others holds no tensors. ``rng`` is uint8 [ranks, bytes]; ``position`` says, as
    JSON, where in the data the training is.
    """
    header = {
        "contract": contract.model_dump_json(),
        "model": model_params.model_dump_json(),
        "objective": objective_params.model_dump_json(),
        "step": str(step),
        "fingerprint": fingerprint.digest,
    }
    tensors, groups = _flatten(optimizer)
    state = {
        "step": step,
        "position": position,
        "fingerprint": fingerprint.parts,
        "optimizer_groups": groups,
    }
    weights = _copied(model.state_dict())
    return Snapshot(step, weights, header, _copied({**tensors, RNG: rng}), state)


def write(taken: Snapshot, checkpoints: Path, num_kept: int) -> Path:
    """Write ``checkpoints/step-xxxxxx`` and drop all but the newest ``num_kept``. Rank 0 only.

    Killed at any moment, it leaves the folders of before, or the new one too. Raises OSError if the
    files cannot be written; the older checkpoints are as they were then, and nothing is left over.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    for stale in checkpoints.glob(".step-*"):  # left by a crash
        shutil.rmtree(stale)
    final = checkpoints / f"step-{taken.step:06d}"
    temporary = checkpoints / f".{final.name}"
    try:
        _write_files(taken, temporary)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = ", ".join(folder.name for folder in _steps(checkpoints)) or "none"
        raise OSError(
            f"the checkpoint of step {taken.step} was not written: {error}. Those of before are "
            f"intact ({kept}); free space under {checkpoints}, then start again to go on"
        ) from error
    if final.exists():  # a damaged one that `latest` passed over
        shutil.rmtree(final)
    temporary.rename(final)
    _fsync(checkpoints)
    for old in _steps(checkpoints)[num_kept:]:
        shutil.rmtree(old)
    return final


def save(checkpoints: Path, *, num_kept: int, **moment: Any) -> Path:
    """:func:`snapshot` and :func:`write` at once; returns the checkpoint's folder."""
    return write(snapshot(**moment), checkpoints, num_kept)


class Writer:
    """Writes snapshots while training goes on, at most one at a time.

    As a context it ends with everything on disk, also when an exception leaves it.
    """

    def __init__(self, checkpoints: Path, num_kept: int) -> None:
        self.checkpoints, self.num_kept = checkpoints, num_kept
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def submit(self, taken: Snapshot) -> None:
        """Begin to write; waits for the snapshot before, and raises what went wrong with it."""
        self.wait()
        self._pending = self._thread.submit(write, taken, self.checkpoints, self.num_kept)

    def check(self) -> None:
        """Raise what went wrong, if it did so already. To be called at every step."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on disk; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def latest(checkpoints: Path) -> Path | None:
    """The newest checkpoint whose checksums hold, or None; a damaged one is named on stderr."""
    for checkpoint in _steps(checkpoints):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        if is_main():
            print(f"{checkpoint} is damaged ({damage}): trying the one before", file=sys.stderr)
    return None


def training_state(checkpoint: Path) -> TrainingState:
    """Read everything but weights and optimizer."""
    state = json.loads((checkpoint / STATE_JSON).read_text())
    with safe_open(checkpoint / paths.TRAINING_STATE, "pt") as file:
        rng = file.get_tensor(RNG)
    return TrainingState(state["step"], rng, state["position"], Fingerprint(state["fingerprint"]))


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimizer back, bit by bit. Raises ValueError if the model differs."""
    _load_whole(model, checkpoint)
    tensors = load_file(checkpoint / paths.TRAINING_STATE)
    groups = json.loads((checkpoint / STATE_JSON).read_text())["optimizer_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(f"{OPTIMIZER}/"):
            _, index, name = key.split("/")
            if tensor.ndim:  # all but the number of steps are of the parameter's shape
                tensor = laid_out_as(parameters[int(index)], tensor)
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def load_model(checkpoint: Path) -> LoadedModel:
    """The pre-trained model in eval mode, on the CPU. Raises ValueError if it is not whole."""
    from mg3d.models.build import build

    contract, model_params, objective_params, step = _header(checkpoint)
    model = build(model_params, objective_params)
    coverage = _load_whole(model, checkpoint)
    return LoadedModel(model.eval(), contract, model_params, objective_params, step, coverage)


def load_encoder(checkpoint: Path) -> tuple["VolumeEncoder", Coverage, VolumeContract]:
    """The vision encoder in eval mode, how much of it was found, and the contract it needs.

    Raises ValueError if under 95 % of its tensors are in the file under their name and shape.
    """
    from mg3d.models.vision import vision_encoder

    contract, model_params, _, _ = _header(checkpoint)
    encoder = vision_encoder(model_params.vision)
    weights = {
        key.removeprefix(ENCODER_PREFIX): tensor
        for key, tensor in _weights(checkpoint).items()
        if key.startswith(ENCODER_PREFIX)
    }
    coverage = load_matching(encoder, weights)
    if coverage.fraction < MIN_COVERAGE:
        raise ValueError(
            f"{checkpoint} covers {coverage.fraction:.0%} of the vision encoder ({coverage}); "
            f"{MIN_COVERAGE:.0%} are needed: is it a checkpoint of this architecture?"
        )
    return encoder.eval(), coverage, contract


def contract_of(checkpoint: Path) -> VolumeContract:
    """The volume contract in a checkpoint's header. Raises ValueError if it has none."""
    return _header(checkpoint)[0]


def export_encoder(checkpoint: Path, out: Path) -> Path:
    """Write only the vision encoder's weights into the folder ``out``, under the same header.

    :func:`load_encoder` reads it; it is what the registry stores. Returns ``out``.
    """
    with safe_open(checkpoint / paths.WEIGHTS, "pt") as file:
        header = file.metadata()
    tensors = {k: t for k, t in _weights(checkpoint).items() if k.startswith(ENCODER_PREFIX)}
    with paths.atomic_write(out / paths.WEIGHTS) as temporary:
        save_file(tensors, temporary, header)
    return out


def load_matching(module: nn.Module, weights: Mapping[str, Tensor]) -> Coverage:
    """Load the tensors whose name and shape fit ``module``; count the rest."""
    own = module.state_dict()
    shared = own.keys() & weights.keys()
    fitting = {key for key in shared if own[key].shape == weights[key].shape}
    laid_out = {key: laid_out_as(own[key], weights[key]) for key in fitting}
    module.load_state_dict(laid_out, strict=False)
    return Coverage(
        loaded=len(fitting),
        missing=len(own.keys() - weights.keys()),
        unexpected=len(weights.keys() - own.keys()),
        mismatched=len(shared - fitting),
    )


def _load_whole(model: nn.Module, checkpoint: Path) -> Coverage:
    weights = _weights(checkpoint)
    coverage = load_matching(model, weights)
    if all(name.startswith(ENCODER_PREFIX) for name in weights) and coverage.missing:
        raise ValueError(
            f"{checkpoint} holds a vision encoder and no text side ({coverage}): it serves tasks "
            "that start from the encoder; take a checkpoint of `mg3d pretrain` for the others"
        )
    if coverage.fraction < 1 or coverage.unexpected:
        raise ValueError(
            f"{checkpoint} does not fit the model ({coverage}): "
            "it was written by another version or with other params"
        )
    return coverage


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    try:
        return load_file(checkpoint / paths.WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} has no readable {paths.WEIGHTS}: {error}") from None


def _header(checkpoint: Path) -> tuple[VolumeContract, Model, Objective, int]:
    try:
        with safe_open(checkpoint / paths.WEIGHTS, "pt") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} has no readable {paths.WEIGHTS}: {error}") from None
    if "contract" not in header:
        raise ValueError(f"{checkpoint / paths.WEIGHTS} carries no volume contract: not ours")
    return (
        VolumeContract.model_validate_json(header["contract"]),
        Model.model_validate_json(header["model"]),
        Objective.model_validate_json(header["objective"]),
        int(header["step"]),
    )


def _flatten(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """``optimizer/<parameter index>/<name>`` -> tensor, and the groups as JSON values."""
    state = optimizer.state_dict()
    tensors = {
        f"{OPTIMIZER}/{index}/{name}": tensor
        for index, of_parameter in state["state"].items()
        for name, tensor in of_parameter.items()
    }
    return tensors, state["param_groups"]


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies in host memory, also of what is there already; rank 0 only."""
    copies = {}
    for key, tensor in tensors.items():
        together = whole(tensor.detach())
        if is_main():
            copies[key] = together.to("cpu", copy=True).contiguous()
    return copies


def _write_files(taken: Snapshot, folder: Path) -> None:
    """All files of a checkpoint and their checksums, fsynced."""
    folder.mkdir()
    save_file(dict(taken.weights), folder / paths.WEIGHTS, dict(taken.header))
    save_file(dict(taken.tensors), folder / paths.TRAINING_STATE)
    (folder / STATE_JSON).write_text(json.dumps(taken.state, indent=1))
    sums = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / CHECKSUMS).write_text("".join(sums))
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes them private
        _fsync(file)
    _fsync(folder)


def _steps(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(
        checkpoints.glob("step-*"),
        key=lambda folder: int(folder.name.removeprefix("step-")),
        reverse=True,
    )


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with the files, or None."""
    try:
        lines = (checkpoint / CHECKSUMS).read_text().splitlines()
        expected = {name: sha256 for sha256, name in (line.split("  ") for line in lines)}
    except (OSError, ValueError):
        return f"no readable {CHECKSUMS}"
    for name in (paths.WEIGHTS, paths.TRAINING_STATE, STATE_JSON):
        if name not in expected or not (checkpoint / name).exists():
            return f"{name} is absent"
        if file_sha256(checkpoint / name) != expected[name]:
            return f"{name} has another checksum"
    return None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
