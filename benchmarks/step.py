"""How long is one optimisation step, and how much of it is not the encoders?

    python benchmarks/step.py --params params/swin_b.yaml --batch 1 --sentences 12

The peer is the bare minimum in the same run: two passes of the vision encoder, forward and
backward, the volume decoder, and one pass of the frozen text encoder over the masked report; the
sentences' means are given, as in training. Text weights are random, of RadBERT's size, so nothing
is fetched. Prints Markdown rows: seconds (median), share of the step, ratio to the minimum, peak
memory. Runs on CUDA if there is a device.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mg3d.models.build import build
from mg3d.models.decoders import VolumeDecoder
from mg3d.models.mg3d import Inputs
from mg3d.objectives.mim import mask_blocks
from mg3d.objectives.mlm import mask_words
from mg3d.objectives.objective import objective
from mg3d.params import Params, load_params

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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params/swin_b.yaml"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    params = load_params(args.params)

    with tempfile.TemporaryDirectory() as folder:
        text = params.model.text.model_copy(
            update={"name_or_folder": str(random_text_encoder(Path(folder)))}
        )
        model = build(params.model.model_copy(update={"text": text}), params.objective).to(DEVICE)
    batch = inputs(params, args.batch, args.sentences, args.tokens)
    batch = Inputs(**{name: value.to(DEVICE) for name, value in vars(batch).items()})
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    decoder = VolumeDecoder(model.width, params.model.mim_decoder_width).to(DEVICE)
    grid = model.vision_encoder.grid(batch.volume)
    tokens = torch.rand(args.batch, grid[0] * grid[1] * grid[2], model.width, device=DEVICE)

    def step() -> None:
        objective(model(batch), batch, params.objective)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    encode = forward_backward(lambda: model.vision_encoder.tokens(batch.volume), model)

    def encode_twice() -> None:
        encode()
        encode()

    parts = median_s(
        {
            "vision encoder, two passes": encode_twice,
            "volume decoder": forward_backward(lambda: decoder(tokens, grid), decoder),
            "text encoder, masked report": lambda: model.text_encoder(
                batch.masked_ids, batch.attention_mask
            ),
            "whole step": step,
        },
        args.repeats,
    )
    whole = parts.pop("whole step")
    minimum = sum(parts.values())
    if DEVICE.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    size = "x".join(map(str, params.contract.shape_voxels))
    print(f"{args.params.stem}, {size}, batch {args.batch}, {args.sentences} sentences, ", end="")
    print(f"{args.tokens} tokens, {DEVICE.type}, {args.threads} threads, torch {torch.__version__}")
    print("\n| part | seconds | of the step |\n|---|---|---|")
    for name, seconds in [*parts.items(), ("minimum: their sum", minimum), ("whole step", whole)]:
        print(f"| {name} | {seconds:.2f} | {seconds / whole:.0%} |")
    print(f"\nstep / minimum: {whole / minimum:.2f}; peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
