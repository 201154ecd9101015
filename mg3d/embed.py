"""`mg3d embed`: DICOM folder -> one embedding per study, by the stages of the training data."""

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from mg3d import paths
from mg3d.data.conversion import convert_volumes
from mg3d.data.volumes import apply_window, pack_volumes
from mg3d.ledger import Ledger
from mg3d.params import ConvertVolumes, DicomVolumes, PackVolumes, VolumeContract


class Encoder(Protocol):
    """A registered encoder: windowed volumes [B, 1, D, H, W] -> features [B, C]."""

    contract: VolumeContract

    def embed(self, volume: np.ndarray) -> np.ndarray:
        """Features of a batch of volumes."""
        ...


def embed(source: DicomVolumes, out: Path, encoder: Encoder, params: ConvertVolumes) -> Ledger:
    """Embed every study of ``source``; writes Parquet with ``study_id`` and ``embedding`` [C].

    The volumes are packed under the encoder's own contract. Returns the ledger of the series;
    a study that fails to pack is a bug of ours here, as each converted series is finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        converted, packed = Path(folder) / "converted", Path(folder) / "packed"
        ledger = convert_volumes(source, converted, params)
        workers = PackVolumes(num_workers=params.num_workers)
        pack_volumes(converted, packed, workers, encoder.contract)
        manifest = pd.read_parquet(packed / paths.MANIFEST)
        rows = []
        for study in manifest.itertuples():
            hu = np.load(packed / paths.VOLUMES / str(study.volume), allow_pickle=False)
            volume = apply_window(hu, encoder.contract.window_hu)[None, None]
            rows.append((study.study_id, encoder.embed(volume)[0].tolist()))
    table = pd.DataFrame(rows, columns=["study_id", "embedding"])
    with paths.atomic_write(out) as temporary:
        table.to_parquet(temporary, index=False)
    return ledger
