"""What a source yields: studies, and for each the candidates for its volume.

A study has one volume. A candidate is a series, an acquisition of it, a reconstruction of a scan or
a folder of slices: what the ledger counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# int16 HU (X, Y, Z) and its affine to RAS mm; no affine if the source knows no millimetres.
Volume = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Candidate:
    """A volume that may stand for its study. ``read`` runs in another process, or not at all.

    ``files`` and ``facts`` (text) are all that decides its voxels, beside params and code.
    ``num_slices`` is that of the scanner; None: the volume's. ``read`` raises Refused.
    """

    input_id: str
    accession_id: str
    files: tuple[Path, ...]
    read: Callable[[], Volume]
    num_files: int = 1
    num_slices: int | None = None
    facts: str = ""


@dataclass(frozen=True)
class Study:
    """Pseudonyms of a study, and its candidates, the one to try first first."""

    study_id: str
    patient_id: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class ReportRow:
    """One report as its source has it. ``key`` joins it with a volume, "" if it has none;
    ``columns`` are the export's other columns, which say what to look for in the text."""

    key: str
    text: str
    columns: dict[str, str]
