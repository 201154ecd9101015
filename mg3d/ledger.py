"""Conservation of inputs: in every stage and epoch, ``inputs = used + quarantined(reason)``.

A stage declares its inputs, settles each of them exactly once, and closes. Nothing disappears:
closing with an unsettled input is a bug of ours and raises. Input ids must not identify a patient
(use :func:`mg3d.data.identity.pseudonym` for ids, a digest for paths).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    DUPLICATE_SLICE = "duplicate_slice"
    VARIABLE_SPACING = "variable_spacing"
    GANTRY_TILT = "gantry_tilt"
    MIXED_ORIENTATION = "mixed_orientation"
    REFORMAT = "reformat"
    DOSE_REPORT = "dose_report"
    BURNED_IN = "burned_in"
    NO_CHEST = "no_chest"
    OVERSIZED = "oversized"
    NESTED_TOO_DEEP = "nested_too_deep"
    UNSAFE_PATH = "unsafe_path"
    MULTI_FRAME = "multi_frame"
    TOO_FEW_SLICES = "too_few_slices"
    MIXED_GEOMETRY = "mixed_geometry"
    MIXED_PATIENTS = "mixed_patients"
    MIXED_STUDIES = "mixed_studies"
    NOT_CHOSEN = "not_chosen"
    STRAY_FILE = "stray_file"
    KNOWN_BAD = "known_bad"
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
    FOREIGN_LANGUAGE = "foreign_language"
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
class Fate:
    """What became of an input: used if there is no reason."""

    reason: Reason | None
    detail: str
    count: int


@dataclass(frozen=True)
class Entry:
    """One settled input. ``count`` is the number of files it stands for (a series has many)."""

    input_id: str
    reason: Reason | None
    detail: str = ""
    count: int = 1


_UNSETTLED = -1


class Ledger:
    """Settles every input of one stage or epoch once.

    ``unit`` names what is counted ("series", "report", "volume", "sample"). Inputs may be settled
    in any order; :meth:`write` sorts by id so that the files are reproducible. A million inputs
    take about 0.2 GB: one dictionary entry each, and one `Fate` for all that share one.
    """

    def __init__(self, stage: str, unit: str, inputs: Iterable[str] = ()) -> None:
        self.stage = stage
        self.unit = unit
        self._fate_of: dict[str, int] = {}  # place in _fates, or _UNSETTLED
        self._fates: dict[Fate, int] = {}
        self._counts: dict[str, int] = {}
        self.declare_all(inputs)

    def declare_all(self, input_ids: Iterable[str]) -> None:
        """Announce many inputs."""
        input_ids = list(input_ids)
        num_before = len(self._fate_of)
        new = dict.fromkeys(input_ids, _UNSETTLED)
        if len(new) < len(input_ids) or not self._fate_of.keys().isdisjoint(new):
            seen = Counter(input_ids) + Counter(self._fate_of.keys() & new.keys())
            raise AssertionError(f"ledger {self.stage}: {seen.most_common(1)[0][0]} declared twice")
        self._fate_of |= new
        assert len(self._fate_of) == num_before + len(input_ids)

    def declare(self, input_id: str) -> None:
        """Announce an input. Raises AssertionError if it was announced before."""
        assert input_id not in self._fate_of, f"ledger {self.stage}: {input_id} declared twice"
        self._fate_of[input_id] = _UNSETTLED

    def use(self, input_id: str, count: int = 1) -> None:
        """Settle an input as used."""
        self._settle([input_id], Fate(None, "", count))

    def use_all(self, input_ids: Iterable[str]) -> None:
        """Settle many inputs as used."""
        self._settle(list(input_ids), Fate(None, "", 1))

    def quarantine(self, input_id: str, reason: Reason, detail: str = "", count: int = 1) -> None:
        """Settle an input as left out; ``detail`` must not identify a patient."""
        self._settle([input_id], Fate(reason, detail, count))

    def quarantine_all(self, input_ids: Iterable[str], reason: Reason, detail: str = "") -> None:
        """Settle many inputs as left out for one reason."""
        self._settle(list(input_ids), Fate(reason, detail, 1))

    def count(self, name: str, number: int) -> None:
        """Note a number beside the conservation, e.g. how many texts are distinct."""
        assert name not in self._counts, f"ledger {self.stage}: {name} counted twice"
        self._counts[name] = number

    def _settle(self, input_ids: list[str], fate: Fate) -> None:
        fate_of = self._fate_of
        new = dict.fromkeys(input_ids, self._fates.setdefault(fate, len(self._fates)))
        if len(new) < len(input_ids) or any(map(_UNSETTLED.__ne__, map(fate_of.get, new))):
            for input_id, number in Counter(input_ids).items():
                if number > 1 or fate_of.get(input_id) != _UNSETTLED:
                    problem = "settled twice" if input_id in fate_of else "undeclared"
                    raise AssertionError(f"ledger {self.stage}: {input_id} {problem}")
        fate_of.update(new)

    @property
    def entries(self) -> list[Entry]:
        """Settled inputs, sorted by id."""
        settled = sorted(item for item in self._fate_of.items() if item[1] != _UNSETTLED)
        fates = list(self._fates)
        return [Entry(key, fates[n].reason, fates[n].detail, fates[n].count) for key, n in settled]

    def summary(self) -> dict[str, object]:
        """``{stage, unit, inputs, used, quarantined, reasons}``; checks conservation.

        ``counts`` too if there are any.
        """
        numbers = Counter(self._fate_of.values())
        if numbers[_UNSETTLED]:
            missing = sorted(key for key, place in self._fate_of.items() if place == _UNSETTLED)
            raise AssertionError(f"ledger {self.stage}: unsettled inputs {missing[:5]}")
        reasons: Counter[str] = Counter()
        for fate, place in self._fates.items():
            if fate.reason is not None and numbers[place]:
                reasons[str(fate.reason)] += numbers[place]
        quarantined = reasons.total()
        summary: dict[str, object] = {
            "stage": self.stage,
            "unit": self.unit,
            "inputs": len(self._fate_of),
            "used": len(self._fate_of) - quarantined,
            "quarantined": quarantined,
            "reasons": dict(sorted(reasons.items())),
        }
        return summary | ({"counts": dict(sorted(self._counts.items()))} if self._counts else {})

    def write(self, folder: Path) -> None:
        """Write ``ledger.json`` (the summary, a DVC metric) and ``ledger.jsonl`` (the entries)."""
        summary = self.summary()
        with (
            paths.atomic_write(folder / paths.LEDGER_ENTRIES) as temporary,
            temporary.open("w") as file,
        ):
            file.writelines(self._lines())
        with paths.atomic_write(folder / paths.LEDGER_SUMMARY) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")

    def _lines(self) -> Iterator[str]:
        """Each entry as JSON with sorted keys; what a fate's lines share is formatted once."""
        ids = sorted(self._fate_of)
        places = [self._fate_of[input_id] for input_id in ids]
        together = "".join(ids)
        if not together.isascii() or not together.isprintable() or {'"', "\\"} & set(together):
            ids = [json.dumps(input_id)[1:-1] for input_id in ids]
        around = []
        for fate in self._fates:
            head = json.dumps({"count": fate.count, "detail": fate.detail})[:-1]
            around.append((f'{head}, "input_id": "', f'", "reason": {json.dumps(fate.reason)}}}\n'))
        for quoted, place in zip(ids, places, strict=True):
            before, after = around[place]
            yield before + quoted + after


def read_summaries(prepared: Path) -> list[dict[str, object]]:
    """Summaries of all stages under ``prepared``, for ``mg3d ledger``.

    A stage that ran for each source is there once for each, as ``stage/source``.
    """
    files = sorted(prepared.rglob(paths.LEDGER_SUMMARY))
    if not files:
        raise ValueError(f"no ledger under {prepared}: run `dvc repro` first")
    summaries = []
    for file in files:
        stage = file.parent.relative_to(prepared).as_posix()
        summaries.append({**json.loads(file.read_text()), "stage": stage})
    return summaries
