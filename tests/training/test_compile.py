"""Compiled blocks compute what they do eagerly, and nothing about them is left uncompiled."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from tiny_prepared import tiny_model


@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # traces everything and generates no code
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
            ],
        ),
    ],
)
def test_losses_and_gradients_are_the_eager_ones(backend: str, tmp_path: Path) -> None:
    tiny_model(tmp_path / "encoder")
    arguments = (0, tmp_path, str(tmp_path / "encoder"))
    expected = ranks.pretrains(*arguments, dtype="float32")
    found = ranks.pretrains(*arguments, accumulate_steps="2", dtype="float32", backend=backend)
    losses = [key for key in expected if key.startswith("loss/")]
    for key in losses:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6, msg=key)
    a, b = (
        torch.cat([x[k].flatten() for k in expected if k not in (*losses, "widths")])
        for x in (found, expected)
    )
    assert (a - b).norm() < 5e-5 * b.norm()
