"""Conservation of inputs: in every stage and epoch, ``inputs = used + quarantined(reason)``.

A stage declares its inputs, settles each of them exactly once, and closes. Nothing disappears:
closing with an unsettled input is a bug of ours and raises. Input ids must not identify a patient
(use :func:`mg3d.data.identity.pseudonym` for ids, a digest for paths).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mg3d import paths
from mg3d.text_columns import is_plain, order_of, text_bytes

if TYPE_CHECKING:
    import pyarrow as pa


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
    take about 0.2 GB: one dictionary entry each, and one `Fate` for all that share one. A stage
    whose inputs are columns settles them as columns (:meth:`settle_column`), without a dictionary.
    """

    def __init__(self, stage: str, unit: str, inputs: Iterable[str] = ()) -> None:
        self.stage = stage
        self.unit = unit
        self._fate_of: dict[str, int] = {}  # place in _fates, or _UNSETTLED
        self._fates: dict[Fate, int] = {}
        self._counts: dict[str, int] = {}
        self._columns: list[tuple[pa.Array, np.ndarray]] = []  # ids, places in _fates
        for input_id in inputs:
            self.declare(input_id)

    def declare(self, input_id: str) -> None:
        """Announce an input. Raises AssertionError if it was announced before."""
        assert input_id not in self._fate_of, f"ledger {self.stage}: {input_id} declared twice"
        self._fate_of[input_id] = _UNSETTLED

    def use(self, input_id: str, count: int = 1) -> None:
        """Settle an input as used."""
        self._settle(input_id, Fate(None, "", count))

    def quarantine(self, input_id: str, reason: Reason, detail: str = "", count: int = 1) -> None:
        """Settle an input as left out; ``detail`` must not identify a patient."""
        self._settle(input_id, Fate(reason, detail, count))

    def settle_column(
        self, input_ids: "pa.Array", fates: Sequence[tuple[Reason | None, str]], of: np.ndarray
    ) -> None:
        """Declare and settle a column of inputs: the i-th has the reason, detail ``fates[of[i]]``.

        An id that is there twice raises AssertionError when the ledger is written.
        """
        import pyarrow as pa

        assert len(input_ids) == len(of), f"ledger {self.stage}: {len(input_ids)} ids, {len(of)}"
        places = [self._fates.setdefault(Fate(*fate, count=1), len(self._fates)) for fate in fates]
        self._columns.append((input_ids.cast(pa.large_string()), np.array(places, np.int32)[of]))

    def count(self, name: str, number: int) -> None:
        """Note a number beside the conservation, e.g. how many texts are distinct."""
        assert name not in self._counts, f"ledger {self.stage}: {name} counted twice"
        self._counts[name] = number

    def _settle(self, input_id: str, fate: Fate) -> None:
        known = self._fate_of.get(input_id)
        problem = "undeclared" if known is None else "settled twice"
        assert known == _UNSETTLED, f"ledger {self.stage}: {input_id} {problem}"
        self._fate_of[input_id] = self._fates.setdefault(fate, len(self._fates))

    def _settled(self) -> tuple["pa.Array", np.ndarray]:
        """All ids, sorted, and the place of each one's fate in ``_fates``, or `_UNSETTLED`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        single = pa.array(self._fate_of, pa.large_string())
        fates = np.fromiter(self._fate_of.values(), np.int32, len(self._fate_of))
        columns = [(single, fates), *self._columns]
        ids = pa.concat_arrays([column for column, _ in columns])
        order = order_of(ids)
        ids = ids.take(pa.array(order))
        again = pc.equal(ids[1:], ids[:-1])
        if pc.any(again).as_py():
            input_id = ids[pc.index(again, True).as_py()]
            raise AssertionError(f"ledger {self.stage}: {input_id} declared twice")
        return ids, np.concatenate([places for _, places in columns])[order]

    @property
    def entries(self) -> list[Entry]:
        """Settled inputs, sorted by id."""
        ids, places = self._settled()
        fates = list(self._fates)
        return [
            Entry(key, fates[n].reason, fates[n].detail, fates[n].count)
            for key, n in zip(ids.to_pylist(), places.tolist(), strict=True)
            if n != _UNSETTLED
        ]

    def summary(self) -> dict[str, object]:
        """``{stage, unit, inputs, used, quarantined, reasons}``; checks conservation.

        ``counts`` too if there are any.
        """
        numbers = Counter(self._fate_of.values())
        for _, places in self._columns:
            numbers.update(dict(enumerate(np.bincount(places).tolist())))
        if numbers[_UNSETTLED]:
            missing = sorted(key for key, place in self._fate_of.items() if place == _UNSETTLED)
            raise AssertionError(f"ledger {self.stage}: unsettled inputs {missing[:5]}")
        reasons: Counter[str] = Counter()
        for fate, place in self._fates.items():
            if fate.reason is not None and numbers[place]:
                reasons[str(fate.reason)] += numbers[place]
        quarantined, inputs = reasons.total(), numbers.total()
        summary: dict[str, object] = {
            "stage": self.stage,
            "unit": self.unit,
            "inputs": inputs,
            "used": inputs - quarantined,
            "quarantined": quarantined,
            "reasons": dict(sorted(reasons.items())),
        }
        return summary | ({"counts": dict(sorted(self._counts.items()))} if self._counts else {})

    def write(self, folder: Path) -> None:
        """Write ``ledger.json`` (the summary, a DVC metric) and ``ledger.jsonl`` (the entries)."""
        summary = self.summary()
        ids, places = self._settled()
        with (
            paths.atomic_write(folder / paths.LEDGER_ENTRIES) as temporary,
            temporary.open("wb") as file,
        ):
            file.writelines(self._lines(ids, places))
        with paths.atomic_write(folder / paths.LEDGER_SUMMARY) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")

    def _lines(self, ids: "pa.Array", places: np.ndarray) -> Iterator[memoryview]:
        """Each entry as JSON with sorted keys; what a fate's lines share is formatted once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not is_plain(ids):
            quoted = [json.dumps(input_id)[1:-1] for input_id in ids.to_pylist()]
            ids = pa.array(quoted, pa.large_string())
        heads, tails = [], []
        for fate in self._fates:
            head = json.dumps({"count": fate.count, "detail": fate.detail})[:-1]
            heads.append(f'{head}, "input_id": "')
            tails.append(f'", "reason": {json.dumps(fate.reason)}}}\n')
        before, after = pa.array(heads, pa.large_string()), pa.array(tails, pa.large_string())
        nothing = pa.scalar("", pa.large_string())
        for start in range(0, len(ids), _LINES):
            of = pa.array(places[start : start + _LINES])
            part = ids.slice(start, _LINES)
            lines = pc.binary_join_element_wise(before.take(of), part, after.take(of), nothing)
            yield text_bytes(lines)[0].data


_LINES = 20_000  # formatted at once


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
