"""Rows of all ranks meet, with the gradient of a single process."""

import os
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from mg3d.training import distributed


def test_alone_everything_is_the_identity() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(rows) is rows
    with distributed.process_group() as device:
        assert device.type in ("cpu", "cuda")
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        distributed.barrier()


def test_gather_is_exact_in_value_and_gradient(tmp_path: Path) -> None:
    both = ranks.run("gathers", 2, tmp_path)
    whole = torch.cat([ranks.rows_of_rank(0), ranks.rows_of_rank(1)])
    # sum over ranks of d/dx (rank + 1) * weight * x^3 = 3 * weight * 3 x^2, weight = row number
    gradient = 3 * torch.arange(3.0)[:, None].double() * 3 * whole**2
    expected = {"gradient": [gradient[:2], gradient[2:]]}
    for rank, found in enumerate(both):
        assert torch.equal(found["gathered"], whole)
        torch.testing.assert_close(found["gradient"], expected["gradient"][rank])
        assert found["flags"].tolist() == [True, False, False]
        assert found["empty"].flatten().tolist() == [0, 1, 2]
        assert found["half"].tolist() == [[0.5, 0.5], [1.5, 1.5]]


TORCHRUN_SCRIPT = """
import os, torch, torch.distributed as dist
from mg3d.training.distributed import barrier, gather, process_group, rank, world_size
with process_group(timeout_s=60) as device:
    barrier()
    assert gather(torch.tensor([rank()], device=device)).tolist() == list(range(world_size()))
    os.write(1, f"ranks {world_size()}\\n".encode())  # print would write the pieces, interleaved
assert not dist.is_initialized()
"""


def test_joins_and_leaves_what_torchrun_started(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ranks.ROOT), "OMP_NUM_THREADS": "1"}
    end = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert end.returncode == 0, end.stderr
    assert end.stdout.count("ranks 2") == 2
