import pytest
import torch
from torch import nn

from mg3d.finetuning.fitting import fit_head, optimizer_groups
from mg3d.finetuning.task import Case
from mg3d.params import Finetune


class Step(nn.Module):
    """A head of one weight on an encoder of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.head = nn.Linear(1, 1)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": (self.head(self.encoder(batch)) - 1).square().mean()}


@pytest.mark.parametrize(("mode", "factor"), [("finetune", 0.1), ("scratch", 1.0)])
def test_a_pretrained_encoder_learns_at_a_rate_of_its_own(mode: str, factor: float) -> None:
    step = Step()
    params = Finetune(
        mode=mode, learning_rate=0.01, weight_decay=0.5, encoder_learning_rate_factor=0.1
    )
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer_groups(step, params)
        for parameter in group["params"]
    }
    assert rates[id(step.head.weight)] == (pytest.approx(0.01), 0.5)
    assert rates[id(step.head.bias)] == (pytest.approx(0.01), 0.0)
    assert rates[id(step.encoder.weight)] == (pytest.approx(0.01 * factor), 0.5)
    assert rates[id(step.encoder.bias)] == (pytest.approx(0.01 * factor), 0.0)
    assert len(rates) == 4


def test_a_criterion_chooses_the_step_in_place_of_the_loss() -> None:
    case = Case("c", "p", None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    step, wanted = Step(), []

    def criterion() -> float:
        wanted.append({k: v.clone() for k, v in step.state_dict().items()})
        return -1.0 if len(wanted) == 2 else 0.0

    fit_head(
        step, [case] * 4, [case], lambda cases: torch.ones(len(cases), 1),
        Finetune(num_steps=20, batch_size=2, learning_rate=0.05), lambda s, m: None, "task",
        criterion,
    )  # fmt: skip
    assert len(wanted) > 2
    assert all(torch.equal(step.state_dict()[name], kept) for name, kept in wanted[1].items())
    assert not torch.equal(step.head.weight, wanted[-1]["head.weight"])
