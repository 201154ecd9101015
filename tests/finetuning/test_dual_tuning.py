import numpy as np
import pytest
import torch

from mg3d.finetuning.dual_tuning import DualEncoder, Projections, mean_recall
from mg3d.models.build import build
from mg3d.params import Model, Objective, TextEncoder, VisionEncoder


def test_projections_start_as_the_identity_and_learn() -> None:
    module = Projections(4, 0.1)
    image, text = torch.randn(6, 4), torch.randn(6, 4)
    assert torch.equal(module.image(image), image)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    first = module((image, text))["total"].item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = module((image, text))["total"]
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


def test_mean_recall_by_hand() -> None:
    """Seven pairs, so at 1 and at 5: the last text is the first one's, its right volume comes last
    (the others tie, pessimistically), and the first volume ties two texts."""
    image = np.eye(7)
    text = image.copy()
    text[-1] = text[0]
    # Texts: 6/7 and 6/7. Volumes: the first is second at best, the last has all at 0: 5/7, 6/7.
    assert mean_recall(image, text) == pytest.approx((6 / 7 + 6 / 7 + 5 / 7 + 6 / 7) / 4)
    assert mean_recall(image, image) == 1
    # A gallery of two, and only the first text finds its volume: mean rank percentiles.
    assert mean_recall(image[:2], image[[0, 0], :][:2]) == pytest.approx((1 + 0 + 0 + 0) / 4)


def test_what_the_dual_encoder_reads_learns_and_nothing_else() -> None:
    vision = VisionEncoder(
        embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2
    )
    weights = {f"{term}_weight": 0.0 for term in ("mlm", "sfr", "mim", "cml", "ssm")}
    torch.manual_seed(0)
    model = build(
        Model(vision=vision, text=TextEncoder(max_tokens=64)),
        Objective(**weights, itc_weight=1.0, dfa_weight=1.0),
    ).eval()
    dual = DualEncoder(model, 0.1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    volume, sentences = torch.rand(3, 1, 32, 32, 32), torch.randn(3, 2, model.width)
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    dual((volume, sentences, mask))["total"].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained
    assert not any(name.startswith(("text_encoder", "dfa", "mim_fusion")) for name in trained)
    assert any(name.startswith("vision_encoder") for name in trained)
    image, text = dual.embed((volume, sentences, mask))
    alone = model.embed_sentences(sentences[1:2, :1], mask[1:2, :1])
    assert torch.allclose(text[1], alone[0], atol=1e-6)  # padding changes nothing
    assert image.shape == text.shape == (3, model.width)
