"""Window attention of the Swin three ways: which is fastest, and what memory does each take?

    python benchmarks/window_attention.py --threads 2 --rounds 3

MONAI's own (`plain`), `scaled_dot_product_attention` with bias and mask as ``attn_mask`` (`sdpa`),
and ours in tiles of windows (`tiled`). Every way has the same weights and must give the same tokens
and gradients. Rounds take the ways in turn. Seconds are medians, of the clock and of all cores
(`CPU`), which a busy machine disturbs less; peak memory is of a process per way.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor

from mg3d import launch
from mg3d.models.vision import SwinEncoder
from mg3d.models.window_attention import TiledWindowAttention
from mg3d.params import VisionEncoder


class SdpaWindowAttention(WindowAttention):
    """One call of `scaled_dot_product_attention`; a mask has to be repeated for every sample."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows [B·W, n, C], shift mask [W, n, n] or None -> [B·W, n, C]."""
        num, n, channels = x.shape
        q, k, v = self.qkv(x).view(num, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        index = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].view(1, n, n, -1).permute(0, 3, 1, 2)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(num // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(num, n, channels))


WAYS = {"plain": WindowAttention, "sdpa": SdpaWindowAttention, "tiled": TiledWindowAttention}


def encoder(way: str, embed_dim: int) -> SwinEncoder:
    """The Swin with this window attention, the same weights for all."""
    torch.manual_seed(0)
    swin = SwinEncoder(VisionEncoder(embed_dim=embed_dim))
    for layer in (*swin.layers1, *swin.layers2, *swin.layers3, *swin.layers4):
        for block in layer.blocks:
            block.attn.__class__ = WAYS[way]  # parameters are the same
    return swin


def timed(swin: SwinEncoder, volume: Tensor) -> dict[str, float]:
    """Seconds without grad, and of forward and backward, by the clock and of all cores."""
    clock, cpu = time.perf_counter, time.process_time
    times = [(clock(), cpu())]
    with torch.no_grad():
        swin.tokens(volume)
    times.append((clock(), cpu()))
    swin.zero_grad()
    times.append((clock(), cpu()))
    tokens = swin.tokens(volume)
    (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
    times.append((clock(), cpu()))
    return {
        "no grad": times[1][0] - times[0][0],
        "no grad, CPU": times[1][1] - times[0][1],
        "forward + backward": times[3][0] - times[2][0],
        "forward + backward, CPU": times[3][1] - times[2][1],
    }


def measure(args: argparse.Namespace, ways: list[str]) -> dict[str, dict[str, float]]:
    """All numbers of the ways, in one process."""
    torch.set_num_threads(args.threads)
    volume = torch.rand(args.batch, 1, *args.size, generator=torch.Generator().manual_seed(1))
    swins = {way: encoder(way, args.embed_dim) for way in ways}
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(args.rounds + 1):
        for way, swin in swins.items():
            taken[way].append(timed(swin, volume))
    numbers = {
        way: {key: statistics.median(one[key] for one in rounds[1:] or rounds) for key in rounds[0]}
        for way, rounds in taken.items()
    }
    with torch.no_grad():
        expected = swins[ways[0]].tokens(volume)
        for way, swin in swins.items():
            numbers[way]["tokens differ"] = float((swin.tokens(volume) - expected).abs().max())
            numbers[way]["gradients differ"] = max(
                float((ours.grad - theirs.grad).norm() / theirs.grad.norm())
                for ours, theirs in zip(swin.parameters(), swins[ways[0]].parameters(), strict=True)
                if ours.grad is not None and theirs.grad is not None
            )
            numbers[way]["GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return numbers


def main() -> None:
    """Measure in processes with the launcher's allocator settings, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[128, 96, 128])
    parser.add_argument("--embed-dim", type=int, default=48)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args, args.ways)))
        return

    def elsewhere(ways: list[str], rounds: int) -> dict[str, dict[str, float]]:
        command = [sys.executable, __file__, "--here", "--rounds", str(rounds), "--ways", *ways]
        command += ["--size", *map(str, args.size), "--embed-dim", str(args.embed_dim)]
        command += ["--batch", str(args.batch), "--threads", str(args.threads)]
        return json.loads(launch.run(command, on_line=lambda _: None))

    numbers = elsewhere(args.ways, args.rounds)
    for way in args.ways:
        numbers[way]["GiB"] = elsewhere([way], 0)[way]["GiB"]
    columns = list(numbers[args.ways[0]])
    print(f"Swin {args.embed_dim}, {args.size}, batch {args.batch}, {args.threads} threads\n")
    print(f"| attention | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for way, row in numbers.items():
        print(f"| {way} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |")


if __name__ == "__main__":
    main()
