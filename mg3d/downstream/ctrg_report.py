"""CTRG-Chest: write the findings of a chest CT. (spec/downstream 4)

Two layouts: the official list ``chest_ctrg_jpg.json`` (image_path, report, result; folders of JPG
slices, no spacing), and the reference's ``chest_ctrg_nitfy_ori_split.json`` (train, val, test;
entries with id, report, result, image_path to NIfTI), whose val is its test.

Nobody says which studies are of one patient. Reports that are word for word the same count as one
patient's, so no text is on two sides of a split.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg3d.data.identity import pseudonym
from mg3d.data.sources.ctrg_chest import LIST
from mg3d.finetuning import report_generation
from mg3d.finetuning.split_files import Listed
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

REFERENCE = "chest_ctrg_nitfy_ori_split.json"


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per study; the text is ``report``, the findings.

    The official list has no split. Of the reference's, train and test are kept, a study of val that
    is also one of test is a repetition, and a tenth of train becomes validation unless val has
    studies of its own. Quarantined: empty or not given report, missing image, an id seen before, a
    text that test, or else validation, has too. Raises ValueError if neither list is there.
    """
    found: list[Case] = []
    seen: set[str] = set()
    part_of: dict[str, str | None] = {}  # a text's, the first one that has it: test before train
    for number, (part, entry) in enumerate(_entries(data)):
        study = str(entry.get("id", entry["image_path"]))
        case_id = pseudonym("case", f"{number}/{study}" if study in seen else study)
        ledger.declare(case_id)
        image, text = data / str(entry["image_path"]), _text(entry)
        if study in seen:
            ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, "repeats another entry")
        elif not text or text.lower() == "not given.":
            ledger.quarantine(case_id, Reason.REPORT_NOT_GIVEN)
        elif not image.exists():
            ledger.quarantine(case_id, Reason.REPORT_WITHOUT_STUDY, "no image")
        elif (owner := part_of.setdefault(text, part)) != part:
            ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, f"word for word a report of {owner}")
        else:
            found.append(Case(case_id, pseudonym("patient", text), image, text=text, split=part))
        seen.add(study)
    return found


def validation_texts(texts: Iterable[str]) -> set[str]:
    """A tenth of the training studies, 144 of 1,444, by a hash of the text: nothing is drawn, and
    neither order nor params change it. Copies of a text go together."""
    ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    return set(ordered[: len(ordered) // 10])


def _entries(data: Path) -> Iterable[tuple[str | None, dict[str, Any]]]:
    """Entries of whichever list is there, with their part; test first, then validation, so that
    what repeats them is what goes."""
    official, reference = data / LIST, data / REFERENCE
    if official.exists():
        yield from ((None, entry) for entry in json.loads(official.read_text()))
        return
    if not reference.exists():
        raise ValueError(f"neither {official} nor {reference}: CTRG-Chest ships one of them")
    parts = json.loads(reference.read_text())
    train, test, val = (parts.get(name, []) for name in ("train", "test", "val"))
    yield from (("test", entry) for entry in test)
    yield from (("validation", entry) for entry in val)
    known = {str(entry["id"]) for entry in test}
    own = [entry for entry in val if str(entry["id"]) not in known]
    taken = set() if own else validation_texts(_text(entry) for entry in train)
    yield from (("validation" if _text(entry) in taken else "train", entry) for entry in train)


def _text(entry: dict[str, Any]) -> str:
    return " ".join(str(entry["report"] or "").split())


TASK = DownstreamTask(
    name="ctrg_report",
    version="3",
    kind=report_generation,
    cases=cases,
    headline=("keyword_micro_f1", "cider_d"),
    citation="Tang et al., Work like a doctor: Unifying scan localizer and dynamic generator for "
    "automated computed tomography report generation (CTRG), Expert Systems with Applications 2024",
    licence="not stated",
    listed=Listed("case", lambda case: case.image.name),
)
