"""Accumulation is the large batch: one loss, one gradient, the memory of a part."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import tiny_model

from mg3d.training import accumulate
from mg3d.training.accumulate import in_parts, join, split


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


def _equal(found: ranks.Tensors, expected: ranks.Tensors) -> None:
    for key in expected.keys() - {"widths"}:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("num_parts", ["3", "4"])
def test_all_terms_and_gradients_are_those_of_the_large_batch(
    num_parts: str, model: Path, tmp_path: Path
) -> None:
    whole = ranks.pretrains(0, tmp_path, str(model))
    _equal(ranks.pretrains(0, tmp_path, str(model), num_parts), whole)
    assert whole["loss/ssm"] > 0


def test_parts_on_two_ranks_are_the_large_batch_of_one(model: Path, tmp_path: Path) -> None:
    whole = ranks.pretrains(0, tmp_path, str(model))
    for found in ranks.run("pretrains", 2, tmp_path, str(model), "2"):
        _equal(found, whole)


@dataclass(frozen=True)
class Only:
    x: Tensor


@dataclass(frozen=True)
class Rows(Only):
    absent: Tensor | None = None


class Noisy(nn.Module):
    """Scales by a random factor, and notes how many samples it sees at once."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[list[float]] = []
        self.drawn: list[float] = []

    def forward(self, rows: Only) -> Rows:
        self.seen.append(rows.x.flatten().tolist())
        factor = torch.rand(1)
        self.drawn.append(factor.item())
        return Rows((self.weight * factor * rows.x).sin())


def test_a_part_at_a_time_there_and_back_with_the_same_draws() -> None:
    module = Noisy()
    inputs = Only(torch.arange(5.0)[:, None])
    # a product over all samples: no sum of the parts' own losses could have its gradient
    loss = (in_parts(module, inputs, 2).x + 1).prod()
    loss.backward()
    assert module.seen == [[0, 1, 2], [3, 4], [3, 4], [0, 1, 2]]
    assert module.drawn[2:] == module.drawn[1::-1]
    factors = torch.tensor([module.drawn[0]] * 3 + [module.drawn[1]] * 2)[:, None]
    weight = torch.ones(1, requires_grad=True)
    ((weight * factors * inputs.x).sin() + 1).prod().backward()
    torch.testing.assert_close(module.weight.grad, weight.grad)


def test_random_state_of_a_gpu_would_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch looks for tensors, hence devices, among the arguments and not inside dataclasses."""
    given: list[object] = []

    def recorded(run: Any, *arguments: Any, **options: Any) -> Any:
        given.extend(arguments)
        assert options.get("preserve_rng_state", True)
        return checkpoint(run, *arguments, **options)

    monkeypatch.setattr(accumulate, "checkpoint", recorded)
    in_parts(Noisy(), Only(torch.arange(5.0)[:, None]), 2)
    assert [len(x) for x in given if isinstance(x, Tensor)] == [3, 2]


def test_split_and_join_are_inverse_and_too_many_parts_are_refused() -> None:
    rows = Only(torch.arange(7.0))
    assert [len(part.x) for part in split(rows, 3)] == [3, 2, 2]
    assert torch.equal(join(split(rows, 3)).x, rows.x)
    assert join([Rows(rows.x), Rows(rows.x)]).absent is None
    with pytest.raises(ValueError, match="accumulate_steps 8 exceeds the 7 samples"):
        split(rows, 8)
