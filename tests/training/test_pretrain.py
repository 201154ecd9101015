"""Pre-training as a whole: ranks, resuming, refusing, and what a run's folder holds."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks


def test_two_ranks_compute_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    """Spec/model invariant 14, all seven terms, reports of unequal length on the ranks."""
    alone = ranks.pretrains(0, tmp_path)
    both = ranks.run("pretrains", 2, tmp_path)
    assert {f"loss/{term}" for term in ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")} < set(
        alone
    )
    assert both[0]["widths"][1] != both[1]["widths"][1]
    for found in both:
        for key in alone.keys() - {"widths"}:
            torch.testing.assert_close(found[key], alone[key], rtol=1e-9, atol=1e-9, msg=key)
    assert alone["loss/ssm"] > 0
