"""World size does not change the mathematics: one, two and four ranks, evenly and unevenly loaded.

The real model with all seven terms; every rank pads its reports to its own widest one.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import tiny_model

TERMS = ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc", "total")

#: Largest relative error; float32's is that of sums in another order (measured: 3e-6).
TOLERANCE = {"even": 1e-10, "uneven": 1e-10, "float32": 2e-5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "encoder"
    tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> ranks.Tensors:
    """Losses and gradients of one process."""
    return ranks.parities(0, tmp_path_factory.mktemp("alone"), str(model))


@pytest.fixture(scope="module")
def together(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ranks.Tensors]:
    """The same from each of four ranks and, of the first two, also from two."""
    folder = tmp_path_factory.mktemp("together")
    return ranks.run_forked("parities_of_four_and_two", 4, folder, str(model))


def relative_error(found: ranks.Tensors, expected: ranks.Tensors, name: str) -> dict[str, float]:
    """Of each loss, and of the gradient of all parameters together: |a − b| / |b|."""
    prefix = f"{name}/"
    keys = [key for key in expected if key.startswith(prefix) and not key.endswith("/shape")]
    gradients = [key for key in keys if "/loss/" not in key]
    groups = {key: [key] for key in keys if "/loss/" in key} | {"gradient": gradients}
    errors = {}
    for group, members in groups.items():
        a, b = (torch.cat([x[k].double().flatten() for k in members]) for x in (found, expected))
        errors[group] = float((a - b).norm() / b.norm())
    return errors


@pytest.mark.parametrize("name", ranks.PARITIES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_losses_and_gradients_are_those_of_one_process(
    world_size: int, name: str, alone: ranks.Tensors, together: list[ranks.Tensors]
) -> None:
    """Spec/model invariant 14."""
    prefix = f"{world_size}/"
    shared = [
        {key.removeprefix(prefix): x for key, x in found.items() if key.startswith(prefix)}
        for found in together[:world_size]
    ]
    shapes = [found[f"{name}/shape"].tolist() for found in shared]
    samples, tokens, sentences = (set(column) for column in zip(*shapes, strict=True))
    assert len(tokens) > 1
    assert len(sentences) > 1
    assert (len(samples) > 1) == (name != "even")
    for found in shared:
        errors = relative_error(found, alone, name)
        assert max(errors.values()) < TOLERANCE[name], errors


def test_every_term_has_a_say(alone: ranks.Tensors) -> None:
    for name in TOLERANCE:
        assert all(alone[f"{name}/loss/{term}"] > 1e-3 for term in TERMS)
