"""Which studies an epoch consists of: all of the split, but for those whose volume is damaged."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch

from mg3d.fingerprint import file_sha256
from mg3d.ledger import Ledger, Reason
from mg3d.training.distributed import gather, is_main, rank, world_size
from mg3d.training.loop import Progress

VERDICTS = (None, Reason.UNREADABLE, Reason.CHECKSUM_MISMATCH)


def account(
    volumes: Mapping[str, tuple[Path, str]],
    out: Path,
    device: torch.device,
    not_chosen: Collection[str] = (),
) -> frozenset[str]:
    """Compare each study's volume with its SHA-256; return the ids of the studies that are whole.

    The ranks share the reading. Every study is in the ledger that rank 0 writes to ``out``, used or
    quarantined with its reason; nothing takes the place of the quarantined ones. The volumes of
    ``not_chosen`` (left out by ``pretrain.train_fraction``) are not read.
    """
    study_ids = [study_id for study_id in volumes if study_id not in not_chosen]
    share = np.array_split(np.arange(len(study_ids)), world_size())[rank()].tolist()
    progress = Progress("checking volumes", len(share))
    codes = []
    for step, index in enumerate(share, 1):
        codes.append(VERDICTS.index(verify(*volumes[study_ids[index]])))
        progress.update(step, 1, {})
    verdicts = gather(torch.tensor(codes, dtype=torch.long, device=device)).tolist()

    ledger = Ledger("pretrain", "study", volumes)
    for study_id in not_chosen:
        ledger.quarantine(study_id, Reason.NOT_CHOSEN, "train_fraction")
    for study_id, code in zip(study_ids, verdicts, strict=True):
        reason = VERDICTS[code]
        if reason is None:
            ledger.use(study_id)
        else:
            ledger.quarantine(study_id, reason)
    if is_main():
        ledger.write(out)
    return frozenset(entry.input_id for entry in ledger.entries if entry.reason is None)


def verify(file: Path, sha256: str) -> Reason | None:
    """Why a file cannot be used, or None."""
    try:
        return None if file_sha256(file) == sha256 else Reason.CHECKSUM_MISMATCH
    except OSError:
        return Reason.UNREADABLE
