"""CTRG-Chest: write the findings of a chest CT. (spec/downstream 4)

Two layouts: the official list ``chest_ctrg_jpg.json`` (image_path, report, result; folders of JPG
slices, no spacing), and the reference's ``chest_ctrg_nitfy_ori_split.json`` (train, val, test;
entries with id, report, result, image_path to NIfTI), whose val is its test.
"""

import json
from pathlib import Path
from typing import Any

from mg3d.data.identity import pseudonym
from mg3d.finetuning import report_generation
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

OFFICIAL, REFERENCE = "chest_ctrg_jpg.json", "chest_ctrg_nitfy_ori_split.json"
_REPEATED = "repeated"


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per study; the text is ``report``, the findings.

    With the official list the split is ours, and studies with word for word the same report stay
    together. Of the reference's, train and test are kept; validation is taken from train, and an
    entry of val is a repetition of a test study. Quarantined: empty or not given report, missing
    image, an id seen before. Raises ValueError if neither list is there.
    """
    official, reference = data / OFFICIAL, data / REFERENCE
    if official.exists():
        entries: list[tuple[str | None, Any]] = [
            (None, entry) for entry in json.loads(official.read_text())
        ]
    elif reference.exists():
        parts = json.loads(reference.read_text())
        val = "validation" if disjoint(parts) else _REPEATED
        entries = [
            (split, entry)
            for name, split in (("train", "train"), ("test", "test"), ("val", val))
            for entry in parts.get(name, [])
        ]
    else:
        raise ValueError(f"neither {official} nor {reference}: CTRG-Chest ships one of them")
    found: list[Case] = []
    seen: set[str] = set()
    for number, (split, entry) in enumerate(entries):
        study = str(entry.get("id", entry["image_path"]))
        if study in seen:
            split = _REPEATED
        seen.add(study)
        case_id = pseudonym("case", f"{number}/{study}" if split == _REPEATED else study)
        ledger.declare(case_id)
        image = data / str(entry["image_path"])
        text = " ".join(str(entry["report"] or "").split())
        if split == _REPEATED:
            ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, "repeats another entry")
        elif not text or text.lower() == "not given.":
            ledger.quarantine(case_id, Reason.REPORT_NOT_GIVEN)
        elif not image.exists():
            ledger.quarantine(case_id, Reason.REPORT_WITHOUT_STUDY, "no image")
        else:
            group = text if split is None else study  # the unit that a split may not divide
            found.append(Case(case_id, pseudonym("patient", group), image, text=text, split=split))
    return found


def disjoint(parts: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether val and test of the reference's file share no study; originally they are equal."""
    val, test = ({str(entry["id"]) for entry in parts.get(name, [])} for name in ("val", "test"))
    return not val & test


TASK = DownstreamTask(
    name="ctrg_report",
    version="2",
    kind=report_generation,
    cases=cases,
    headline=("keyword_micro_f1", "cider_d"),
    citation="Tang et al., Work like a doctor: Unifying scan localizer and dynamic generator for "
    "automated computed tomography report generation (CTRG), Expert Systems with Applications 2024",
    licence="not stated",
)
