"""Conservation of inputs: in every stage and epoch, ``inputs = used + quarantined(reason)``.

A stage declares its inputs, settles each of them exactly once, and closes. Nothing disappears:
closing with an unsettled input is a bug of ours and raises. Input ids must not identify a patient
(use :func:`mg3d.data.identity.pseudonym` for ids, a digest for paths).
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from mg3d import paths


class Reason(StrEnum):
    """Why an input was not used. The value is what the ledger, the metric and the table show."""

    NOT_DICOM = "not_dicom"
    TRUNCATED = "truncated"
    UNDECODABLE = "undecodable"
    NOT_CT = "not_ct"
    LOCALIZER = "localizer"
    SECONDARY = "secondary"
    MISSING_TAG = "missing_tag"
    MISSING_SLICE = "missing_slice"
    DUPLICATE_POSITION = "duplicate_position"
    DUPLICATE_FILE = "duplicate_file"
    MULTI_FRAME = "multi_frame"
    TOO_FEW_SLICES = "too_few_slices"
    MIXED_GEOMETRY = "mixed_geometry"
    MIXED_PATIENTS = "mixed_patients"
    MIXED_STUDIES = "mixed_studies"
    NOT_CHOSEN = "not_chosen"
    UNREADABLE = "unreadable"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    WRONG_SHAPE = "wrong_shape"
    TOO_LARGE = "too_large"
    NO_AFFINE = "no_affine"
    BAD_AFFINE = "bad_affine"
    AFFINES_DISAGREE = "affines_disagree"
    IMPLAUSIBLE_SPACING = "implausible_spacing"
    NOT_FINITE = "not_finite"
    CONSTANT = "constant"
    NOT_HU = "not_hu"
    EMPTY_REPORT = "empty_report"
    REPORT_NOT_GIVEN = "report_not_given"
    NO_KEY = "no_key"
    DUPLICATE_REPORT_KEY = "duplicate_report_key"
    NO_SENTENCES = "no_sentences"
    NO_TOKENS = "no_tokens"
    STUDY_WITHOUT_REPORT = "study_without_report"
    REPORT_WITHOUT_STUDY = "report_without_study"
    ORPHAN_MASK = "orphan_mask"
    ORPHAN_IMAGE = "orphan_image"
    INVALID_LABEL = "invalid_label"
    NOT_IN_SPLIT = "not_in_split"


@dataclass(frozen=True)
class Entry:
    """One settled input. ``count`` is the number of files it stands for (a series has many)."""

    input_id: str
    reason: Reason | None
    detail: str = ""
    count: int = 1


class Ledger:
    """Settles every input of one stage or epoch once.

    ``unit`` names what is counted ("series", "report", "volume", "sample"). ``settle`` calls may
    come in any order; :meth:`write` sorts by id so that the files are reproducible.
    """

    def __init__(self, stage: str, unit: str, inputs: Iterable[str] = ()) -> None:
        self.stage = stage
        self.unit = unit
        self._inputs: set[str] = set()
        self._entries: dict[str, Entry] = {}
        for input_id in inputs:
            self.declare(input_id)

    def declare(self, input_id: str) -> None:
        """Announce an input. Raises AssertionError if it was announced before."""
        assert input_id not in self._inputs, f"ledger {self.stage}: {input_id} declared twice"
        self._inputs.add(input_id)

    def use(self, input_id: str, count: int = 1) -> None:
        """Settle an input as used."""
        self._settle(Entry(input_id, None, "", count))

    def quarantine(self, input_id: str, reason: Reason, detail: str = "", count: int = 1) -> None:
        """Settle an input as left out; ``detail`` must not identify a patient."""
        self._settle(Entry(input_id, reason, detail, count))

    def _settle(self, entry: Entry) -> None:
        assert entry.input_id in self._inputs, f"ledger {self.stage}: {entry.input_id} undeclared"
        assert entry.input_id not in self._entries, (
            f"ledger {self.stage}: {entry.input_id} settled twice"
        )
        self._entries[entry.input_id] = entry

    @property
    def entries(self) -> list[Entry]:
        """Settled inputs, sorted by id."""
        return [self._entries[key] for key in sorted(self._entries)]

    def summary(self) -> dict[str, object]:
        """``{stage, unit, inputs, used, quarantined, reasons}``; checks conservation."""
        missing = sorted(self._inputs - set(self._entries))
        assert not missing, f"ledger {self.stage}: unsettled inputs {missing[:5]}"
        reasons = Counter(str(e.reason) for e in self._entries.values() if e.reason is not None)
        quarantined = sum(reasons.values())
        return {
            "stage": self.stage,
            "unit": self.unit,
            "inputs": len(self._inputs),
            "used": len(self._entries) - quarantined,
            "quarantined": quarantined,
            "reasons": dict(sorted(reasons.items())),
        }

    def write(self, folder: Path) -> None:
        """Write ``ledger.json`` (the summary, a DVC metric) and ``ledger.jsonl`` (the entries)."""
        summary = self.summary()
        with paths.atomic_write(folder / paths.LEDGER_ENTRIES) as temporary:
            temporary.write_text(
                "".join(json.dumps(asdict(entry), sort_keys=True) + "\n" for entry in self.entries)
            )
        with paths.atomic_write(folder / paths.LEDGER_SUMMARY) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")


def read_summaries(prepared: Path) -> list[dict[str, object]]:
    """Summaries of all stages under ``prepared``, for ``mg3d ledger``."""
    files = sorted(prepared.glob(f"*/{paths.LEDGER_SUMMARY}"))
    if not files:
        raise ValueError(f"no ledger under {prepared}: run `dvc repro` first")
    return [json.loads(file.read_text()) for file in files]
