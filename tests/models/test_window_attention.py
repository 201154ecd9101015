"""Attention in tiles against MONAI's: values, gradients, keys."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer, WindowAttention, compute_mask

from mg3d.models import window_attention
from mg3d.models.vision import SwinEncoder
from mg3d.models.window_attention import TiledWindowAttention, tiled_attention
from mg3d.params import VisionEncoder


def _pair(
    window: tuple[int, int, int], dtype: torch.dtype
) -> tuple[WindowAttention, TiledWindowAttention]:
    torch.manual_seed(0)
    theirs = WindowAttention(12, 3, window, qkv_bias=True).to(dtype)
    torch.nn.init.normal_(theirs.relative_position_bias_table)
    ours = TiledWindowAttention(12, 3, window, qkv_bias=True).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("window", [(3, 3, 3), (3, 5, 2)])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("tile_windows", [1, 3, 100])
def test_values_and_gradients_are_those_of_monai(
    dtype: torch.dtype,
    atol: float,
    window: tuple[int, int, int],
    shifted: bool,
    tile_windows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two samples of eight windows; tiles that end within a sample, at its end, and of all."""
    theirs, ours = _pair(window, dtype)
    n = window[0] * window[1] * window[2]
    tile_bytes = tile_windows * 3 * n * n * dtype.itemsize
    monkeypatch.setattr(window_attention, "TILE_BYTES", tile_bytes)
    mask = None
    if shifted:
        dims, shift = [2 * size for size in window], [size // 2 for size in window]
        mask = compute_mask(dims, window, shift, "cpu").to(dtype)
        assert mask.shape == (8, n, n)
    x = torch.randn(16, n, 12, dtype=dtype)
    weight = torch.randn(16, n, 12, dtype=dtype)
    gradients = []
    outputs = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        outputs.append(module(given, mask))
        (outputs[-1] * weight).sum().backward()
        gradients.append({"x": given.grad} | {k: p.grad for k, p in module.named_parameters()})
    torch.testing.assert_close(outputs[1], outputs[0], atol=atol, rtol=0)
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=atol, rtol=atol, msg=name)


def test_fewer_tokens_than_the_window_has() -> None:
    """MONAI shrinks the window at coarse levels and reads the first rows of the index."""
    theirs, ours = _pair((3, 3, 3), torch.float64)
    x = torch.randn(4, 18, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x, None), theirs(x, None), atol=1e-10, rtol=0)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *given: tiled_attention(*given, mask, 0.7), (q, k, v, bias)
    )


def test_under_autocast_it_is_the_float32_attention_of_rounded_tokens() -> None:
    theirs, ours = _pair((3, 3, 3), torch.float32)
    x = torch.randn(4, 27, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x, None)
        expected = theirs(x, None)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.02)
    out.float().square().mean().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0


def test_the_swin_has_it_with_the_weights_and_keys_of_monai() -> None:
    """A volume whose finest grid the window does not divide: padded, shifted, and shrunk levels."""
    params = VisionEncoder(
        embed_dim=4, depths=(2, 2, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=3
    )
    torch.manual_seed(0)
    swin = SwinEncoder(params).double()
    blocks = [module for module in swin.modules() if isinstance(module, WindowAttention)]
    assert [type(block) for block in blocks] == [TiledWindowAttention] * 6
    torch.manual_seed(0)
    monai = SwinTransformer(
        1, 4, (3, 3, 3), (2, 2, 2), (2, 2, 1, 1), (1, 1, 2, 2), downsample="merging"
    ).double()
    own, theirs = swin.state_dict(), monai.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)  # also as drawn
    volume = torch.rand(2, 1, 32, 64, 32, dtype=torch.float64)
    for encoder in (swin, monai):
        maps = encoder(volume)
        sum(
            (one * torch.linspace(-1, 1, one.numel()).view_as(one)).sum() for one in maps
        ).backward()
    with torch.no_grad():
        for one, other in zip(swin(volume), monai(volume), strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    for (name, a), b in zip(swin.named_parameters(), monai.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=1e-9, msg=name)
