import torch

from mg3d.finetuning.retrieval import Projections


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
