"""Ranks end together: who died is named, and SIGTERM to one stops all at one step, saved."""

import os
import re
import time
from pathlib import Path

import pytest

from mg3d import launch

RANK = """
import os, signal, sys
import torch
from torch import nn
from mg3d.fingerprint import Fingerprint
from mg3d.launch import RESUMABLE
from mg3d.training.distributed import gather, process_group, rank, sigterm_noted
from mg3d.training.loop import Stopped, fit
from mg3d.training.schedule import warmup_then_decay

how = sys.argv[1]

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
    def forward(self, inputs):
        loss = self.layer(inputs).square().mean()
        return {"total": loss}

def batches():
    step = 0
    while True:
        step += 1
        if step == 5 and rank() == 1:
            if how == "error":
                raise RuntimeError("the scanner is on fire")
            print("the last words of rank 1", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGTERM)
        yield ["study"], torch.tensor([[1.0, step]])

with sigterm_noted() as told, process_group(timeout_s=60):
    module = Step()
    module = nn.parallel.DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    try:
        fit(module, batches(), optimizer=optimizer, clip_norm=1.0, prefix="toy", num_steps=100000,
            scheduler=warmup_then_decay(optimizer, 100000, 0.0), on_metrics=lambda *_: None,
            save=lambda step: print(f"rank {rank()} saves step {step}", flush=True), stop=told)
    except Stopped:
        torch.distributed.barrier()
        sys.exit(RESUMABLE)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_rank.py").write_text(RANK)
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))


@pytest.mark.parametrize(
    ("how", "named", "words"),
    [
        ("error", "rank 1 exited with code 1", "RuntimeError: the scanner is on fire"),
        ("kill", "rank 1 was ended by Killed", "the last words of rank 1"),
    ],
)
def test_a_dead_rank_ends_the_job_and_is_named(how: str, named: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(launch.CommandError, match=named) as failed:
        launch.torchrun([how], 2, 1, lambda _: None, module="a_rank")
    assert time.monotonic() - began < 60
    assert words in str(failed.value)[-3000:].split(named)[1]


def test_sigterm_to_one_rank_stops_both_at_one_step_with_the_code_to_resume() -> None:
    lines: list[str] = []
    with pytest.raises(SystemExit) as left:
        launch.torchrun(["terminate"], 2, 1, lines.append, module="a_rank")
    assert left.value.code == launch.RESUMABLE == 75
    saved = [re.findall(r"rank (\d) saves step (\d+)", line) for line in lines]
    assert sorted(found[0] for found in saved if found) == [("0", "5"), ("1", "5")]
