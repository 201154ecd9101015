"""How long is one optimisation step, how much of it is not the encoders, and how does it grow?

    python benchmarks/step.py --params params/swin_b.yaml --batch 1 --sentences 12
    python benchmarks/step.py --batch 1 2 4 --sentences 12 32 --accumulate

The peer is the bare minimum in the same run: two passes of the vision encoder, forward and
backward, the volume decoder, and one pass of the frozen text encoder over the masked report. Text
weights are random, of RadBERT's size, so nothing is fetched. One configuration gives a table of
its parts; several give a row each. Every configuration has a process of its own, with the
allocator of `mg3d.launch`, so that peak memory is its own. Seconds are medians, and of one rank.
Runs on CUDA if there is a device.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mg3d import launch
from mg3d.models.build import build
from mg3d.models.decoders import VolumeDecoder
from mg3d.models.mg3d import MG3D, Inputs
from mg3d.objectives.mim import mask_blocks
from mg3d.objectives.mlm import mask_words
from mg3d.params import Params, load_params
from mg3d.training.distributed import process_group, world_size
from mg3d.training.parallel import replicated
from mg3d.training.pretrain import PretrainStep

STEP, MINIMUM, GIB = "whole step", "minimum: their sum", "GiB"
HIDDEN_SIZE = 768  # of the text encoder
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_text_encoder(folder: Path) -> Path:
    """A BERT of RadBERT's size (110 M parameters, vocabulary 28,996) with random weights."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(28_991))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=28_996)).save_pretrained(folder)
    return folder


def inputs(params: Params, batch: int, sentences: int, tokens: int) -> Inputs:
    """Random volumes and reports of exactly ``tokens`` tokens in ``sentences`` sentences."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(batch, 1, *params.contract.shape_voxels, generator=generator)
    masked, voxel_mask = mask_blocks(
        volume,
        params.objective.mim_masked_fraction,
        params.objective.mim_block_voxels,
        generator,
    )
    ids = torch.randint(5, 28_996, (batch, tokens), generator=generator)
    word = torch.arange(tokens).expand(batch, tokens).clone()
    word[:, [0, -1]] = -1
    sentence = (torch.arange(tokens) * sentences // tokens).expand(batch, tokens).clone()
    sentence[:, [0, -1]] = -1
    masked_ids, labels = mask_words(
        ids, word, params.objective.mlm_masked_fraction, 4, 28_996, generator
    )
    return Inputs(
        *(volume, masked, voxel_mask, ids, masked_ids, labels),
        attention_mask=torch.ones_like(ids),
        sentence_index=sentence,
        sentence_mask=torch.ones(batch, sentences, dtype=torch.bool),
        sentence_means=torch.randn(batch, sentences, HIDDEN_SIZE, generator=generator),
    )


def median_s(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each run, after one round that warms up.

    Rounds take the runs in turn, so that a machine that is busy for a while slows all of them.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def forward_backward(run: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    """One forward and backward through ``module``, gradients dropped."""

    def once() -> None:
        run().square().mean().backward()
        module.zero_grad()

    return once


def random_model(params: Params) -> MG3D:
    """The params' model with a random text encoder of RadBERT's size."""
    with tempfile.TemporaryDirectory() as folder:
        text = params.model.text.model_copy(
            update={"name_or_folder": str(random_text_encoder(Path(folder)))}
        )
        return build(params.model.model_copy(update={"text": text}), params.objective).to(DEVICE)


def flops(model: MG3D, run: Callable[[], object]) -> float:
    """Floating-point operations of ``run``, with MONAI's window attention.

    The counter does not know the fused attention that the Swin runs on a CPU.
    """
    attention = [m for m in model.modules() if isinstance(m, WindowAttention)]
    kinds = [type(module) for module in attention]
    for module in attention:
        module.__class__ = WindowAttention
    with FlopCounterMode(display=False) as counter:
        run()
    for module, kind in zip(attention, kinds, strict=True):
        module.__class__ = kind
    return float(counter.get_total_flops())


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds by part, of the minimum and of the step; GiB; TFLOP of the minimum and the step."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    params = load_params(args.params)
    model = random_model(params)  # before ranks join: transformers saves on the first one only
    with process_group():
        drawn = inputs(params, args.batch[0], args.sentences[0], args.tokens[0])
        batch = Inputs(**{name: value.to(DEVICE) for name, value in vars(drawn).items()})
        parts_of_batch = args.batch[0] if args.accumulate else 1
        training = replicated(PretrainStep(model, accumulate_steps=parts_of_batch), DEVICE)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, fused=True)
        decoder = VolumeDecoder(model.width, params.model.mim_decoder_width).to(DEVICE)
        grid = model.vision_encoder.grid(batch.volume)
        tokens = torch.rand(args.batch[0], math.prod(grid), model.width, device=DEVICE)

        def step() -> None:
            training(batch)["total"].backward()
            optimizer.step()
            optimizer.zero_grad()

        encode = forward_backward(lambda: model.vision_encoder.tokens(batch.volume), model)

        def encode_twice() -> None:
            encode()
            encode()

        runs: dict[str, Callable[[], object]] = {
            "vision encoder, two passes": encode_twice,
            "volume decoder": forward_backward(lambda: decoder(tokens, grid), decoder),
            "text encoder, masked report": lambda: model.text_encoder(
                batch.masked_ids, batch.attention_mask
            ),
        }
        # An accumulated batch's graph would not fit; DDP counts every backward pass.
        if args.accumulate or world_size() > 1:
            runs = {}
        found = median_s({**runs, STEP: step}, args.repeats)
        if DEVICE.type == "cuda":
            found[GIB] = torch.cuda.max_memory_allocated() / 2**30
        else:
            found[GIB] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if runs:
            found[MINIMUM] = sum(found[name] for name in runs)
        if args.flops:
            found[f"TFLOP, {STEP}"] = flops(model, step) / 1e12
            found[f"TFLOP, {MINIMUM}"] = sum(flops(model, run) for run in runs.values()) / 1e12
    return found


def elsewhere(args: argparse.Namespace, ranks: int, **one: int) -> dict[str, float]:
    """:func:`measure` of one configuration in processes of its own."""
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [__file__, "--here", "--params", str(args.params), "--threads", str(args.threads)]
    command += ["--repeats", str(args.repeats)]
    command += [word for key, value in one.items() for word in (f"--{key}", str(value))]
    command += [f"--{name}" for name in ("accumulate", "flops") if getattr(args, name)]
    lines: list[str] = []
    launch.run(command, on_line=lines.append)
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params/swin_b.yaml"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="of one rank")
    parser.add_argument("--sentences", type=int, nargs="+", default=[12])
    parser.add_argument("--tokens", type=int, nargs="+", default=[250])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--accumulate", action="store_true", help="one sample at a time")
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.here:
        found = measure(args)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return

    rows = {
        (batch, sentences, tokens, ranks): elsewhere(
            args, ranks, batch=batch, sentences=sentences, tokens=tokens
        )
        for batch, sentences, tokens, ranks in itertools.product(
            args.batch, args.sentences, args.tokens, args.ranks
        )
    }
    size = "x".join(map(str, load_params(args.params).contract.shape_voxels))
    print(f"{args.params.stem}, {size}, {DEVICE.type}, {args.threads} threads, ", end="")
    print(f"torch {torch.__version__}{', one sample at a time' if args.accumulate else ''}\n")
    if len(rows) == 1:
        ((_, found),) = rows.items()
        print("| part | seconds | of the step |\n|---|---|---|")
        for name, seconds in found.items():
            if name != GIB and not name.startswith("TFLOP"):
                print(f"| {name} | {seconds:.2f} | {seconds / found[STEP]:.0%} |")
        print()
    heading = ["batch", "sentences", "tokens", "ranks", "step, s", "step / minimum", "peak GiB"]
    heading += ["TFLOP", "TFLOP / minimum"]
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for key, found in rows.items():
        ratio = f"{found[STEP] / found[MINIMUM]:.2f}" if MINIMUM in found else "–"
        work = ["–", "–"]
        if args.flops:
            whole, least = found[f"TFLOP, {STEP}"], found[f"TFLOP, {MINIMUM}"]
            work = [f"{whole:.2f}", f"{whole / least:.2f}"]
        cells = [*map(str, key), f"{found[STEP]:.1f}", ratio, f"{found[GIB]:.1f}", *work]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
