"""Every study of the splits is used or quarantined with its reason."""

import hashlib
from pathlib import Path

import torch

from mg3d.ledger import Reason, read_summaries
from mg3d.training.account import account, verify


def test_damaged_volumes_are_left_out_and_told(tmp_path: Path) -> None:
    volumes = {}
    for number in range(4):
        file = tmp_path / f"study-{number}.npy"
        file.write_bytes(b"voxels" * (number + 1))
        volumes[f"study-{number}"] = (file, hashlib.sha256(file.read_bytes()).hexdigest())
    assert verify(*volumes["study-0"]) is None
    volumes["study-1"][0].write_bytes(b"other")
    volumes["study-3"][0].unlink()
    out = tmp_path / "runs" / "one"
    whole = account(volumes, out, torch.device("cpu"))
    assert whole == {"study-0", "study-2"}
    (summary,) = read_summaries(out.parent)
    assert summary["inputs"] == 4
    assert summary["reasons"] == {Reason.CHECKSUM_MISMATCH: 1, Reason.UNREADABLE: 1}
