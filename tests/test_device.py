"""The best device is the GPU that CUDA shows first; batches go there whole."""

import pytest
import torch

from mg3d.device import best, moved


def test_best_is_the_first_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best() == torch.device("cuda", 0)


def test_every_tensor_of_a_batch_moves() -> None:
    meta = torch.device("meta")
    first, (second, third) = moved((torch.ones(2), [torch.ones(3), "name"]), meta)
    assert first.device == second.device == meta
    assert third == "name"
