"""The guard: nothing of a test case may have been seen in training or selection, nor in both.

Checked between all parts of a split, for every task, before anything is trained:

- *patients*: by pseudonym;
- *images*: files, or folders of slices, of the same bytes, whoever they are said to be of. Equal
  sizes are compared first, so that few files are read whole. The same voxels compressed in another
  way are not found;
- *texts*: reports of the same words (but for case, spaces and punctuation).

A text on both sides is a leak where the text is what is predicted (``texts=True``: report
generation), if it is of ordinary length, 12 words or more, and one or two studies have it on the
side that is seen first: then it looks like the copy of a study. A short text ("The lungs are
clear.") or one that three or more of them share is the template of a normal report; that a test
study has it too says nothing of that study, and the null baseline ``most_frequent_report`` shows
what it is worth. In other tasks no text is the answer, normal reports recur by nature, and official
test sets hold some: they are counted in the result, not refused.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mg3d.finetuning.cases import SPLITS, Case

MIN_WORDS = 12
MIN_STUDIES = 3
_HEAD = 64 * 1024  # bytes that are compared before a file is read whole
_DATA_FILE = re.compile(rb"^ElementDataFile\s*=\s*(\S+)", re.MULTILINE)


def refuse_leaks(task: str, split: Mapping[str, Sequence[Case]], *, texts: bool) -> dict[str, int]:
    """What was compared and found harmless, for the result: ``images`` and ``shared_texts``.

    Raises ValueError naming the first pair of cases by pseudonym, with the remedy.
    """
    parts = {name: split[name] for name in SPLITS}
    for one, other in combinations(parts, 2):
        first = {case.patient_id: case for case in parts[one]}
        for case in parts[other]:
            if case.patient_id in first:
                pair = _pair(first[case.patient_id], one, case, other)
                raise ValueError(
                    f"{task}: {pair} are of one patient, {case.patient_id}: a patient may be in "
                    "one part only; repair the split, or take the task's own (split: rule)"
                )
    part_of = {case.case_id: name for name, cases in parts.items() for case in cases}
    everyone = [case for cases in parts.values() for case in cases]
    for same in _equal_images(everyone):
        for a, b in combinations(same, 2):
            if part_of[a.case_id] != part_of[b.case_id]:
                pair = _pair(a, part_of[a.case_id], b, part_of[b.case_id])
                raise ValueError(
                    f"{task}: {pair} have the same image, byte for byte, under two patients: "
                    "find out whose it is, and take the other out of the data set"
                )
    shared = 0
    for studies in _equal_texts(everyone):
        by_part = {name: [c for c in studies if part_of[c.case_id] == name] for name in SPLITS}
        in_part = {name: found for name, found in by_part.items() if found}
        if len(in_part) < 2:
            continue
        shared += 1
        one, other = list(in_part)[:2]
        if texts and is_copy(in_part[one][0].text, len(in_part[one])):
            pair = _pair(in_part[one][0], one, in_part[other][0], other)
            raise ValueError(
                f"{task}: {pair} have word for word the same report: they look like one study; "
                "put both into one part, or take one of them out of the data set"
            )
    return {"images": len(everyone), "shared_texts": shared}


def is_copy(text: str, studies: int) -> bool:
    """Whether a text that ``studies`` studies have on the side seen first is a study's copy on the
    other side, and not a template."""
    return len(text.split()) >= MIN_WORDS and studies < MIN_STUDIES


def normalised(text: str) -> str:
    """The words of a text: lower case, letters and digits, one space between."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _equal_texts(cases: Iterable[Case]) -> list[list[Case]]:
    """Groups of studies with the same words; the reconstructions of a scan are one study."""
    groups: dict[str, dict[str, Case]] = defaultdict(dict)
    for case in cases:
        if words := normalised(case.text):
            groups[words].setdefault(case.scan_id or case.case_id, case)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def _equal_images(cases: Sequence[Case]) -> list[list[Case]]:
    """Groups of cases of several patients whose images are of the same bytes."""
    groups = [list(cases)]
    for key in (_size, _head, _whole):
        groups = [finer for group in groups for finer in _by(group, key)]
    return groups


def _by(cases: Sequence[Case], key: Callable[[Sequence[Path]], Any]) -> list[list[Case]]:
    """Cases of one key together, if they are of more than one patient. Empty files have none."""
    found: dict[Any, list[Case]] = defaultdict(list)
    for case in cases:
        files = _files(case.image)
        if files and _size(files)[1]:
            found[key(files)].append(case)
    return [group for group in found.values() if len({case.patient_id for case in group}) > 1]


def _files(image: Path) -> list[Path]:
    """The files that hold the voxels: the slices of a folder, the data of a MetaImage header."""
    if image.is_dir():
        return sorted(path for path in image.iterdir() if path.is_file() and path.name[0] != ".")
    if image.suffix == ".mhd" and image.is_file():
        with image.open("rb") as file:
            named = _DATA_FILE.search(file.read(_HEAD))
        if named and named.group(1) != b"LOCAL":
            image = image.parent / named.group(1).decode(errors="replace")
    return [image] if image.is_file() else []


def _size(files: Sequence[Path]) -> tuple[int, int]:
    return len(files), sum(path.stat().st_size for path in files)


def _head(files: Sequence[Path]) -> bytes:
    with files[0].open("rb") as file:
        return file.read(_HEAD)


def _whole(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _pair(a: Case, part: str, b: Case, other: str) -> str:
    return f"{a.case_id} ({part}) and {b.case_id} ({other})"
