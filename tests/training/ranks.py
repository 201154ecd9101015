"""Run a function of this file on several gloo ranks, each a process: the tests' small torchrun.

``run("gathers", 2, folder)`` starts ``python ranks.py gathers ...`` twice; the ranks meet through a
file, so no port is chosen. What a rank returns (a dict of tensors) comes back as a list.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
Tensors = dict[str, Tensor]


def start(
    name: str, world_size: int, folder: Path, *arguments: str, ranks: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """The running ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for name_of_torchrun in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name_of_torchrun, None)
    command = [sys.executable, __file__, name, str(world_size), str(folder)]
    return [
        subprocess.Popen(
            [*command, rank, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks or map(str, range(world_size))
    ]


def run(name: str, world_size: int, folder: Path, *arguments: str) -> list[Tensors]:
    """Run function ``name`` on all ranks and return what each saved."""
    ranks = start(name, world_size, folder, *arguments)
    ends = [process.communicate(timeout=240) for process in ranks]
    assert all(process.returncode == 0 for process in ranks), "\n".join(end[1] for end in ends)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(world_size)]


def run_forked(name: str, world_size: int, folder: Path, *arguments: str) -> list[Tensors]:
    """:func:`run` for the real model, whose imports take most of the time: once for all ranks.

    ``name`` may be several, as in ``"killed+lies"``: one after the other, each in ranks of its own.
    Only the last of them must end well.
    """
    (parent,) = start(name, world_size, folder, *arguments, ranks=["forked"])
    _, errors = parent.communicate(timeout=240)
    assert parent.returncode == 0, errors
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(world_size)]


# --- what runs there ------------------------------------------------------------------------------


def gathers(rank: int, folder: Path) -> Tensors:
    """Uneven rows of several dtypes; gradient of a global function of the gathered rows."""
    from mg3d.training.distributed import gather

    rows = rows_of_rank(rank).requires_grad_()
    gathered = gather(rows)
    row_weights = torch.arange(len(gathered), dtype=gathered.dtype)[:, None]
    ((gathered**3 * row_weights).sum() * (rank + 1)).backward()
    assert rows.grad is not None
    flags = gather(torch.tensor([rank == 0] * (rank + 1)))
    empty = gather(torch.arange(3)[:, None] if rank else torch.zeros(0, 1, dtype=torch.long))
    half = gather(torch.full((1, 2), rank + 0.5, dtype=torch.bfloat16))
    return {
        "gathered": gathered,
        "gradient": rows.grad,
        "flags": flags,
        "empty": empty,
        "half": half,
    }


def rows_of_rank(rank: int) -> Tensor:
    """[2, 3] on rank 0, [1, 3] on rank 1."""
    return torch.arange(1.0, 10.0, dtype=torch.float64).reshape(3, 3)[
        rank * 2 : rank * 2 + 2 - rank
    ]


class Contrast(nn.Module):
    """A stand-in of the real step: two towers, InfoNCE over the global batch, one local term."""

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 4).double(), nn.Linear(5, 4).double()
        self.gather = gather

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensors:
        """Inputs [B,6], [B,5] -> losses."""
        volumes, reports = inputs
        image = self.gather(F.normalize(self.image(volumes), dim=1))
        text = self.gather(F.normalize(self.text(reports), dim=1))
        logits = image @ text.T / 0.1
        target = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        local = (self.image(volumes) ** 2).mean()
        return {"contrast": contrast, "local": local, "total": contrast + local}


def contrast_inputs(step: int) -> tuple[Tensor, Tensor]:
    """The global batch [8,6], [8,5] of a step."""
    generator = torch.Generator().manual_seed(step)
    both = torch.randn(8, 11, dtype=torch.float64, generator=generator)
    return both[:, :6], both[:, 6:]


def fits(rank: int, folder: Path) -> Tensors:
    """Three steps of the real loop on the stand-in, this rank's share of each global batch."""
    import torch.distributed as dist

    from mg3d.training.distributed import gather, world_size
    from mg3d.training.loop import fit
    from mg3d.training.schedule import warmup_then_decay

    module: nn.Module = Contrast(gather)
    if dist.is_initialized():
        module = nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    reported: list[dict[str, float]] = []
    share = 8 // world_size()

    def batches() -> Iterator[tuple[list[str], tuple[Tensor, Tensor]]]:
        for step in range(1, 4):
            part = slice(rank * share, (rank + 1) * share)
            volumes, reports = contrast_inputs(step)
            yield [f"study-{step}-{rank}"], (volumes[part], reports[part])

    fit(
        module,
        batches(),
        optimizer=optimizer,
        scheduler=warmup_then_decay(optimizer, 3, 0.0),
        num_steps=3,
        clip_norm=0.5,
        on_metrics=lambda _, metrics: reported.append(metrics),
        prefix="stand_in",
        report_every_steps=1,
    )
    assert bool(reported) == (rank == 0)
    history = [[m[f"stand_in/train/{k}"] for k in ("total", "local")] for m in reported]
    weights = {key.removeprefix("module."): w for key, w in module.state_dict().items()}
    gradients = {f"{k.removeprefix('module.')}.grad": p.grad for k, p in module.named_parameters()}
    return {**weights, **gradients, "history": torch.tensor(history, dtype=torch.float64)}


def stops(rank: int, folder: Path) -> Tensors:
    """A value that is not finite on rank 1 only: both ranks stop, rank 1 names its study."""
    from mg3d.training.loop import fit
    from mg3d.training.schedule import warmup_then_decay

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, inputs: Tensor) -> Tensors:
            loss = self.layer(inputs).mean()
            return {"mim": loss, "total": loss}

    module = nn.parallel.DistributedDataParallel(Local())
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    value = float("nan") if rank == 1 else 1.0
    named = "study-1.*nothing was updated" if rank == 1 else "batch of rank 1"
    with pytest.raises(FloatingPointError, match=f"step 1: mim = nan.*{named}"):
        fit(
            module,
            [([f"study-{rank}"], torch.tensor([[value]]))],
            optimizer=optimizer,
            scheduler=warmup_then_decay(optimizer, 1, 0.0),
            num_steps=1,
            clip_norm=1.0,
            on_metrics=lambda *_: None,
            prefix="x",
        )
    same = all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    return {"unchanged": torch.tensor(same)}


@dataclass(frozen=True)
class Reports:
    """The fields of `mg3d.data.pairs.Batch` that masking reads, padded to its own widest report."""

    study_ids: list[str]
    volume: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    sentence_index: Tensor
    word_index: Tensor
    sentence_mask: Tensor
    sentence_means: Tensor | None = None


def reports(places: list[int]) -> Reports:
    """Random volumes and reports of different lengths; sample i is the same in every batch."""
    samples = []
    for place in places:
        generator = torch.Generator().manual_seed(place)
        sentences = [3 + place % 3, 2, 4][: 1 + place % 3]
        ids = torch.randint(5, 18, (sum(sentences),), generator=generator)
        index = torch.repeat_interleave(torch.arange(len(sentences)), torch.tensor(sentences))
        volume = torch.rand(1, 64, 32, 32, generator=generator, dtype=torch.float64)
        samples.append((volume, ids, index, len(sentences)))
    length = max(len(ids) for _, ids, _, _ in samples) + 2
    num_sentences = max(number for *_, number in samples)
    rows = []
    for volume, ids, index, number in samples:
        padding = (1, length - len(ids) - 1)
        words = F.pad(torch.arange(len(ids)) // 2, padding, value=-1)  # two pieces a word
        attention = F.pad(torch.ones_like(ids), (2, length - len(ids) - 2), value=0)
        attention[0:2] = 1
        mask = torch.arange(num_sentences) < number
        input_ids = F.pad(ids, padding)
        input_ids[0], input_ids[len(ids) + 1] = 2, 3
        rows.append((volume, input_ids, attention, F.pad(index, padding, value=-1), words, mask))
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return Reports([f"study-{place}" for place in places], *columns)


def pretrains(
    rank: int,
    folder: Path,
    model: str,
    accumulate_steps: str = "1",
    dtype: str = "float64",
    backend: str | None = None,
) -> Tensors:
    """Losses and gradients of the whole model on this rank's share of a global batch of four.

    ``backend`` compiles its blocks, in one graph each or not at all.
    """
    from tiny_prepared import tiny_model

    from mg3d.models.mg3d import MG3D
    from mg3d.params import Objective
    from mg3d.training.distributed import gather, world_size
    from mg3d.training.feed import corrupt
    from mg3d.training.pretrain import PretrainStep

    objective = Objective(
        itc_weight=1.0, mim_block_voxels=16, ssm_similar_from=0.5, ssm_dissimilar_to=0.3
    )
    torch.manual_seed(0)
    network = MG3D(tiny_model(Path(model)), objective).to(getattr(torch, dtype))
    for block in network.blocks if backend else ():
        block.compile(dynamic=False, fullgraph=True, backend=backend)
    module: nn.Module = PretrainStep(network, accumulate_steps=int(accumulate_steps))
    if world_size() > 1:
        module = nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)
    share = 4 // world_size()
    places = list(range(rank * share, (rank + 1) * share))
    keys = [(1, place) for place in places]
    batch = reports(places)
    batch = replace(batch, volume=batch.volume.to(getattr(torch, dtype)))
    inputs = corrupt(batch, keys, 0, objective, 4, 20)  # type: ignore[arg-type]
    losses = module(inputs)
    losses["total"].backward()
    means = {f"loss/{k}": gather(loss.detach()[None]).mean() for k, loss in losses.items()}
    gradients = {k: p.grad for k, p in network.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in gradients.values())
    widths = {"widths": torch.tensor(inputs.input_ids.shape)}
    return {**means, **gradients, **widths}  # type: ignore[dict-item]


#: What test_parity compares: name -> (dtype, samples of the global batch).
PARITIES = {"even": ("float64", 8), "uneven": ("float64", 7), "float32": ("float32", 7)}


def parities_of_four_and_two(rank: int, folder: Path, model: str) -> Tensors:
    """:func:`parities` on all four ranks, then on the first two: ``4/...`` and ``2/...``."""
    import torch.distributed as dist

    found = {f"4/{key}": tensor for key, tensor in parities(rank, folder, model).items()}
    dist.destroy_process_group()
    together = rank < 2
    meeting = f"file://{folder}/meet-{'two' if together else rank}"
    place, size = (rank, 2) if together else (0, 1)
    dist.init_process_group("gloo", init_method=meeting, rank=place, world_size=size)
    if together:
        found |= {f"2/{key}": tensor for key, tensor in parities(rank, folder, model).items()}
    return found


def parities(rank: int, folder: Path, model: str) -> Tensors:
    """Losses and gradients of the whole model over shares of global batches, ``name/key``."""
    import numpy as np
    from tiny_prepared import tiny_model

    from mg3d.models.mg3d import MG3D
    from mg3d.params import Objective
    from mg3d.training.distributed import gather, world_size
    from mg3d.training.feed import corrupt
    from mg3d.training.pretrain import PretrainStep

    objective = Objective(
        itc_weight=1.0, mim_block_voxels=16, ssm_similar_from=0.5, ssm_dissimilar_to=0.3
    )
    vision = {"embed_dim": 12, "num_heads": (1, 2, 4, 8)}
    params = tiny_model(Path(model))
    params = params.model_copy(update={"vision": params.vision.model_copy(update=vision)})
    found = {}
    for name, (dtype, num_samples) in PARITIES.items():
        torch.manual_seed(0)
        network = MG3D(params, objective).to(getattr(torch, dtype))
        module: nn.Module = PretrainStep(network)
        if world_size() > 1:
            module = nn.parallel.DistributedDataParallel(module, forward_sync_buffers=False)
        by_length = sorted(range(num_samples), key=lambda place: place % 3)
        places = np.array_split(by_length, world_size())[rank].tolist()
        batch = reports(places)
        batch = replace(batch, volume=batch.volume.to(getattr(torch, dtype)))
        keys = [(1, place) for place in places]
        inputs = corrupt(batch, keys, 0, objective, 4, 20)  # type: ignore[arg-type]
        losses = module(inputs)
        losses["total"].backward()
        for key, loss in losses.items():
            found[f"{name}/loss/{key}"] = gather(loss.detach()[None]).mean()
        for key, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                found[f"{name}/{key}"] = parameter.grad
        shape = (len(places), inputs.input_ids.shape[1], inputs.sentence_mask.shape[1])
        found[f"{name}/shape"] = torch.tensor(shape)
    return found


def as_published(rank: int, folder: Path, model: str, places: str = "") -> Tensors:
    """This rank's losses, and each one's gradient averaged over ranks as DDP does: ``term/key``.

    Without dropout. Two ranks share four samples; alone, the samples are those of ``places``.
    """
    import torch.distributed as dist
    from tiny_prepared import tiny_model

    from mg3d.models.build import build
    from mg3d.params import Objective
    from mg3d.training.distributed import world_size
    from mg3d.training.feed import corrupt
    from mg3d.training.pretrain import PretrainStep

    own = [2 * rank, 2 * rank + 1] if world_size() == 2 else [int(place) for place in places]
    params = tiny_model(Path(model))
    vision = params.vision.model_copy(update={"token_projector": True})
    objective = Objective(
        itc_weight=1.0,
        mlm_masked_fraction=0.5,
        ssm_similar_from=0.5,
        ssm_dissimilar_to=0.3,
        as_published=True,
    )
    torch.manual_seed(0)
    network = build(params.model_copy(update={"vision": vision}), objective).double().eval()
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    inputs = corrupt(reports(own), [(1, place) for place in own], 0, objective, 4, 20)  # type: ignore[arg-type]
    found = PretrainStep(network)(inputs)
    del found["total"]
    for term, loss in list(found.items()):
        gradients = torch.autograd.grad(
            loss, list(trained.values()), retain_graph=True, materialize_grads=True
        )
        for key, gradient in zip(trained, gradients, strict=True):
            if world_size() > 1:
                dist.all_reduce(gradient)
            found[f"{term}/{key}"] = gradient / world_size()
    return found


def validates(rank: int, folder: Path) -> Tensors:
    """Rank 0 has three of the four studies of test_validation."""
    from test_validation import Known, _inputs

    from mg3d.training.validation import evaluate

    scores, similarity = evaluate(Known(), [_inputs([[0, 1, 2], [3]][rank])])  # type: ignore
    return {
        "scores": torch.tensor(list(scores.values()), dtype=torch.float64),
        "similarity": torch.from_numpy(similarity),
    }


def killed(rank: int, folder: Path, prepared: str, model: str, num_steps: str = "5") -> Tensors:
    """Pre-training whose ranks are all ended by SIGKILL in the second step after a checkpoint."""
    saved, out = int(num_steps) // 2, folder / "killed"

    def kill() -> None:
        while rank == 0 and not (out / "checkpoints" / f"step-{saved:06d}").exists():
            time.sleep(0.01)  # written meanwhile
        os.kill(os.getpid(), signal.SIGKILL)

    with at_step(saved + 2, kill):
        _pretrain(prepared, model, out, int(num_steps))
    return {}


def lies(rank: int, folder: Path, prepared: str, model: str) -> Tensors:
    """Five steps in folders: replicated, sharded, and continued where something ended before.

    ``none`` and ``full`` are uninterrupted; ``full_full`` is cut off after step 3 and goes on from
    step 2, ``none_full`` too, in the other layout; ``killed`` is what :func:`killed` left.
    """
    from mg3d.training import pretrain

    for out in ("none", "full"):
        _pretrain(prepared, model, folder / out, 5, sharding=out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "draw", lambda *_: None)  # half of the time of so short a run
        for out in ("full_full", "none_full"):
            first, second = out.split("_")
            with pytest.raises(Cut), at_step(4, cut):
                _pretrain(prepared, model, folder / out, 5, sharding=first)
            _pretrain(prepared, model, folder / out, 5, sharding=second)
        left = [file.name for file in (folder / "killed" / "checkpoints").iterdir()]
        assert rank or left == ["step-000002"]
        _pretrain(prepared, model, folder / "killed", 5)
    return {}


def _pretrain(prepared: str, model: str, out: Path, num_steps: int, **changes: Any) -> None:
    from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model

    from mg3d.training.pretrain import pretrain

    every = {f"{what}_every_steps": num_steps // 2 for what in ("checkpoint", "validate")}
    params = PRETRAIN.model_copy(update={"num_steps": num_steps, **every, **changes})
    network = tiny_model(Path(model))
    pretrain(Path(prepared), out, CONTRACT, network, OBJECTIVE, params, lambda *_: None)


@contextmanager
def at_step(step: int, act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when the batch of ``step`` is asked for."""
    from mg3d.training.feed import Feed

    original = Feed.training

    def training(self: Feed, pairs: Any, start_step: int = 0) -> Iterator[Any]:
        for number, batch in enumerate(original(self, pairs, start_step), start_step + 1):
            if number == step:
                act()
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "training", training)
        yield


class Cut(Exception):
    """Raised where a training is to end."""


def cut() -> None:
    """End a training as an error does."""
    raise Cut


def watched(
    rank: int, folder: Path, prepared: str, model: str, out: str, cut_at: str = "0"
) -> Tensors:
    """The same with checkpoints every three steps, noting each step's studies; Cut at a step."""
    from tiny_prepared import CONTRACT, OBJECTIVE, PRETRAIN, tiny_model

    from mg3d.training.feed import Feed
    from mg3d.training.pretrain import pretrain

    original = Feed.training

    def training(self: Feed, pairs: Any, start_step: int = 0) -> Iterator[Any]:
        for step, batch in enumerate(original(self, pairs, start_step), start_step + 1):
            if step == int(cut_at):
                raise Cut
            with (folder / "studies.jsonl").open("a") as file:
                file.write(json.dumps([step, batch[0]]) + "\n")
            yield batch

    params = PRETRAIN.model_copy(update={"checkpoint_every_steps": 3})
    network = tiny_model(Path(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Feed, "training", training)
        pretrain(Path(prepared), Path(out), CONTRACT, network, OBJECTIVE, params, lambda *_: None)
    return {}


def fork(names: Sequence[str], world_size: int) -> tuple[str, str]:
    """Become the parent of all ranks, which ends with the last ones, or return what to run as whom.

    Forking is safe as nothing was computed before: neither torch nor gloo has threads yet.
    """
    for slow in ("mg3d.models.mg3d", "mg3d.training.pretrain", "transformers.models.bert"):
        importlib.import_module(slow)

    for name in names:
        children = []
        for rank in range(world_size):
            child = os.fork()
            if child == 0:
                return name, str(rank)
            children.append(child)
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, ends)))


def main() -> None:
    """``python ranks.py NAME WORLD_SIZE FOLDER RANK|forked [ARGUMENT ...]``."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    name, world_size, folder, rank = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    if rank == "forked":
        name, rank = fork(name.split("+"), world_size)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{name}", rank=int(rank), world_size=world_size
    )
    found = globals()[name](int(rank), folder, *sys.argv[5:])
    tensors = {key: tensor.detach().contiguous() for key, tensor in found.items()}
    save_file(tensors, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
