"""MONAI's window attention without its matrices of all windows: same weights, same values.

At 128x96x128 the finest level of Swin-B compares 343 x 343 tokens in 700 windows of 3 heads: one
such matrix is a gigabyte, and MONAI's forward and backward walk through more than a dozen of them.
PyTorch's fused attention keeps none, but on a CPU it has no gradient for an additive bias, and
falls back to the same matrices where the bias is learned. Here the forward pass is the fused one,
and the backward pass computes the attention of a few windows again, tile by tile.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import SwinTransformer, WindowAttention
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Attention weights of a tile of windows: what stays in a core's cache from one operation to the
#: next, while each is still large enough for several threads to share.
TILE_BYTES = 2**22


class TiledWindowAttention(WindowAttention):
    """MONAI's `WindowAttention` in tiles of windows; parameters and names are MONAI's."""

    relative_position_index: Tensor

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows [B·W, n, C], shift mask [W, n, n] or None -> [B·W, n, C].

        MONAI's own on a GPU, where tiles were never measured, and when compiled, which would unroll
        them.
        """
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x, mask)
        num_windows, n, channels = x.shape
        qkv = self.qkv(x).view(num_windows, n, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        index = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].view(n, n, -1).permute(2, 0, 1)
        out = tiled_attention(q, k, v, bias.contiguous(), mask, self.scale)
        return self.proj(out.transpose(1, 2).reshape(num_windows, n, channels))


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale · q kᵀ + bias + mask) v, of q, k, v [B·W, h, n, d].

    ``bias`` [h, n, n] is of all windows; ``mask`` [W, n, n] of all heads, and of window w for the
    rows w, W + w, 2W + w ... of q. No gradient for ``mask``. Computed in the precision of ``bias``
    (float32 under autocast, as MONAI's softmax), returned in that of q.
    """
    q_, k_, v_ = (each.to(bias.dtype) for each in (q, k, v))
    with torch.autocast(q.device.type, enabled=False):
        return _TiledAttention.apply(q_, k_, v_, bias, mask, scale).to(q.dtype)


def tile_windows(swin: SwinTransformer) -> None:
    """Let all window attention of MONAI's Swin run in tiles; parameters stay the same objects."""
    for module in swin.modules():
        if type(module) is WindowAttention:
            module.__class__ = TiledWindowAttention


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        for tile in _tiles(q, mask):
            q_, k_, v_ = q[tile], k[tile], v[tile]
            added = _added(bias, mask, tile)
            out[tile] = F.scaled_dot_product_attention(q_, k_, v_, attn_mask=added, scale=scale)
        ctx.save_for_backward(q, k, v, bias, mask, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, mask, out = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(each) for each in (q, k, v))
        d_bias = torch.zeros_like(bias)
        mean = (d_out * out).sum(-1, keepdim=True)
        q = q * ctx.scale
        for tile in _tiles(q, mask):
            scores = (q[tile] @ k[tile].mT).add_(_added(bias, mask, tile))
            weights = scores.softmax(-1)
            dv[tile] = weights.mT @ d_out[tile]
            d_scores = torch.matmul(d_out[tile], v[tile].mT, out=scores)
            d_scores.sub_(mean[tile]).mul_(weights)
            d_bias += d_scores.sum(0)
            dq[tile] = (d_scores @ k[tile]).mul_(ctx.scale)
            dk[tile] = d_scores.mT @ q[tile]
        return dq, dk, dv, d_bias, None, None


def _tiles(q: Tensor, mask: Tensor | None) -> Iterator[slice]:
    """Ranges of windows; none crosses from one sample to the next if there is a mask."""
    num_windows, num_heads, n, _ = q.shape
    per_sample = num_windows if mask is None else len(mask)
    size = max(1, TILE_BYTES // (q.element_size() * num_heads * n * n))
    for first in range(0, num_windows, per_sample):
        for start in range(first, first + per_sample, size):
            yield slice(start, min(start + size, first + per_sample))


def _added(bias: Tensor, mask: Tensor | None, tile: slice) -> Tensor:
    """What is added to the scores of a tile's windows, [windows or 1, h, n, n]."""
    if mask is None:
        return bias[None]
    start = tile.start % len(mask)
    return bias + mask[start : start + tile.stop - tile.start, None]
