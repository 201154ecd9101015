import math

import pytest
import torch

from mg3d.finetuning.classification import Classifier, masked_loss


def test_masked_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 5.0], [0.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0], [1.0, 0.0]])
    first = (2 * math.log(2) + math.log(1 + math.exp(-2))) / 3
    assert masked_loss(logits, labels).item() == pytest.approx(first + math.log(2))


def test_a_label_that_does_not_apply_has_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [0.0, float("nan")]])
    masked_loss(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[:, 1].tolist() == [0, 0]
    assert logits.grad[:, 0].tolist() == [-0.25, 0.25]


def test_probe_starts_at_one_half_and_standardises() -> None:
    features = torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0]])
    probe = Classifier(features, 2, None)
    assert probe.logits(features).tolist() == [[0, 0], [0, 0]]
    probe.head.weight.data.fill_(1)
    assert probe.logits(features)[:, 0].tolist() == pytest.approx([-2, 2])  # constant third: 0


def test_frozen_probe_has_no_encoder_to_train() -> None:
    names = [name for name, _ in Classifier(torch.randn(4, 3), 1, None).named_parameters()]
    assert names == ["head.weight", "head.bias"]
