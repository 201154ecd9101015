import pytest
import torch
import torch.nn.functional as F

from mg3d.models import decoders


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_of_the_reference() -> None:
    assert _count(decoders.VolumeDecoder(768)) == 10_638_385  # spec/model 4.3
    assert _count(decoders.token_projector(1536, 768)) == 2_361_600  # spec/model 2.1
    widths = [block[0].out_channels for block in decoders.VolumeDecoder(768).blocks]
    assert widths == [384, 192, 96, 48, 48]
    narrow = [block[0].out_channels for block in decoders.VolumeDecoder(768, 384).blocks]
    assert narrow == [192, 96, 48, 24, 24]


def test_volume_decoder_is_the_reference_order_of_layers() -> None:
    """The last doubling and the last convolution are swapped for speed: the same function."""
    torch.manual_seed(0)
    decoder = decoders.VolumeDecoder(32).double()
    tokens = torch.randn(2, 12, 32, dtype=torch.float64)
    x = tokens.transpose(1, 2).reshape(2, 32, 2, 3, 2)
    for block in decoder.blocks:
        convolution, _, _ = block
        x = F.conv3d(x, convolution.weight, convolution.bias, padding=1)
        x = (x - x.mean((2, 3, 4), keepdim=True)) / (
            x.var((2, 3, 4), unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        x = torch.where(x > 0, x, 0.01 * x)
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    expected = F.conv3d(x, decoder.out.weight, decoder.out.bias)
    torch.testing.assert_close(decoder(tokens, (2, 3, 2)), expected, atol=1e-9, rtol=0)
    assert expected.shape == (2, 1, 64, 96, 64)


def test_one_token_cannot_be_decoded() -> None:
    with pytest.raises(ValueError, match=r"more than one token.*contract\.shape_voxels"):
        decoders.VolumeDecoder(16)(torch.zeros(2, 1, 16), (1, 1, 1))


def test_logits_of_masked_positions_only_give_the_dense_loss_and_gradients() -> None:
    torch.manual_seed(0)
    head = decoders.MaskedWordHead(16, 50).double()
    words = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.full((3, 7), -100)
    labels[0, 2], labels[0, 5], labels[2, 1] = 4, 7, 49
    transformed = head.transform(words)
    sparse = F.cross_entropy(head(transformed, labels), labels[labels != -100])
    dense = F.cross_entropy(head.decoder(transformed).transpose(1, 2), labels)  # ignores -100
    torch.testing.assert_close(sparse, dense)
    leaves = [words, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad(sparse, leaves, retain_graph=True),
        torch.autograd.grad(dense, leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("head", "out"),
    [
        (decoders.sfr_prediction_head, 8),
        (decoders.sfr_target_head, 8),
        (decoders.ssm_head, 128),
        (lambda width: decoders.token_projector(width, 24), 24),
    ],
)
def test_no_head_couples_samples_or_sentences(head: object, out: int) -> None:
    """A BatchNorm in its place, as in the reference, fails here."""
    torch.manual_seed(0)
    module = head(32).double()
    x = torch.randn(3, 5, 32, dtype=torch.float64)
    together = module(x)
    assert together.shape == (3, 5, out)
    torch.testing.assert_close(module(x[1:2, 3:4])[0, 0], together[1, 3])


def test_sfr_targets_do_not_learn_and_tell_sentences_apart() -> None:
    torch.manual_seed(0)
    head = decoders.sfr_target_head(384)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    targets = F.normalize(head(torch.randn(50, 384)), dim=-1)
    cosines = (targets @ targets.T)[~torch.eye(50, dtype=torch.bool)]
    assert cosines.mean() < 0.8
