"""The radiologist's words for a study, from exactly its findings."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import SEVERITIES, Finding, kinds_of
from mg3d.phantom.wording import (
    COMPARISON,
    DEVICES,
    GRADES,
    HEADINGS,
    HISTORY,
    NEGATIVE,
    NORMAL_FINDINGS,
    NORMAL_SUMMARY,
    PLURAL_DEVICES,
    POSITIVE,
    RIBS,
    SUMMARY,
    TECHNIQUE,
    TITLES,
)

LUNG_KINDS = frozenset(
    (
        "pleural_effusion", "pneumothorax", "consolidation", "ground_glass", "atelectasis",
        "emphysema", "fibrosis", "mosaic", "septal_thickening", "peribronchial_thickening",
        "bronchiectasis", "nodule", "mass",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Sentences by section, each with its final period; ``impression`` items are numbered later."""

    history: str
    technique: str
    comparison: str
    findings: tuple[str, ...]
    impression: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """Who a report is about and who signed it; what de-identification must remove."""

    family_name: str
    given_name: str
    sex: str
    age: int
    patient_id: str
    physician: str


def measurement(size_mm: tuple[int, int], draws: Draws) -> str:
    """``1.5 x 2 cm``, ``15 x 20 mm`` or ``20 mm``; the long diameter is always among them."""
    long, short = size_mm
    style = draws.integer(0, 2)
    if style == 0:
        return f"{short / 10:g} x {long / 10:g} cm"
    return f"{short} x {long} mm" if style == 1 else f"{long} mm"


def _words(finding: Finding, draws: Draws) -> dict[str, str]:
    grades = GRADES.get(finding.kind, SEVERITIES)
    side = "bilateral" if finding.side == "both" else finding.side
    grade = grades[finding.severity]
    device = draws.choice(DEVICES.get(finding.location, ("",)))
    return {
        "side": side,
        "Side": side.capitalize(),
        "s": "s" if finding.side == "both" else "",
        "lobe": finding.location,
        "size": measurement(finding.size_mm, draws),
        "grade": grade,
        "Grade": grade.capitalize(),
        "rib": RIBS.get(finding.location, ""),
        "device": device,
        "Device": device[:1].upper() + device[1:],
    }


def _fill(template: str, finding: Finding, words: dict[str, str]) -> str:
    text = template.format(**words)
    if finding.location in PLURAL_DEVICES:
        text = text.replace("There is a ", "There are ")
    return text


def compose(
    findings: Sequence[Finding], draws: Draws, person: Person, date: str, num_slices: int
) -> Report:
    """Write up a study: every finding once in the findings, up to five of them in the impression,
    some absent kinds negated, nothing else claimed. ``date`` is of the earlier examination."""
    present = kinds_of(findings)
    words = {finding: _words(finding, draws.child(finding.kind)) for finding in findings}
    said = [
        _fill(draws.choice(POSITIVE[finding.kind]), finding, words[finding])
        for finding in draws.shuffled(findings)
    ]
    denied: list[str] = []
    spoken: set[str] = set()
    for kinds, templates in NEGATIVE:
        if (
            not present.intersection(kinds)
            and not spoken.intersection(kinds)
            and draws.chance(0.35)
        ):
            denied.append(draws.choice(templates))
            spoken.update(kinds)
    if not present & LUNG_KINDS and draws.chance(0.5):
        said.insert(0, draws.choice(NORMAL_FINDINGS))
    if not said:
        said.append(draws.choice(NORMAL_FINDINGS))
    cut = draws.integer(0, len(denied))
    summary = [
        _fill(SUMMARY[finding.kind], finding, words[finding]) + "."
        for finding in draws.shuffled(findings)[:5]
    ] or [draws.choice(NORMAL_SUMMARY)]
    around = {
        "age": str(person.age),
        "person": "woman" if person.sex == "F" else "man",
        "date": date,
        "slices": str(num_slices),
    }
    return Report(
        history=draws.choice(HISTORY).format(**around) + ".",
        technique=draws.choice(TECHNIQUE).format(**around) + ".",
        comparison=draws.choice(COMPARISON).format(**around) + ".",
        findings=tuple(denied[:cut] + said + denied[cut:]),
        impression=tuple(summary),
    )


def prose(sentences: Sequence[str]) -> str:
    """Sentences as one paragraph."""
    return " ".join(sentences)


def export_text(report: Report, draws: Draws, person: Person, date: str) -> str:
    """The report as a hospital system exports it: headings in several spellings, hard-wrapped at
    times, names and dates inside, numbered impressions, a final period missing here and there."""

    def heading(section: str) -> str:
        name = draws.choice(HEADINGS[section])
        return name + (" " if name.endswith(":") and draws.chance(0.5) else "\n")

    def drop_period(text: str) -> str:
        return text[:-1] if draws.chance(0.15) and text.endswith(".") else text

    blocks = [f"{draws.choice(TITLES)}, {date}"]
    if draws.chance(0.35):
        title = "Mrs." if person.sex == "F" else "Mr."
        blocks.append(f"Patient: {title} {person.given_name} {person.family_name}")
    if draws.chance(0.25):
        blocks.append(f"MRN: {person.patient_id}")
    for section in ("history", "technique", "comparison"):
        if draws.chance(0.7):
            blocks.append(heading(section) + drop_period(getattr(report, section)))
    if draws.chance(0.3):
        body = "\n".join(drop_period(sentence) for sentence in report.findings)
    else:
        body = drop_period(prose(report.findings))
    blocks.append(heading("findings") + body)
    if draws.chance(0.5):
        items = "\n".join(f"{n}. {drop_period(s)}" for n, s in enumerate(report.impression, 1))
    else:
        items = drop_period(prose(report.impression))
    blocks.append(heading("impression") + items)
    if draws.chance(0.5):
        blocks.append(f"Dictated by Dr. {person.physician} on {date}")
    if draws.chance(0.35):
        blocks = [
            "\n".join(textwrap.fill(line, 72) for line in block.split("\n")) for block in blocks
        ]
    return draws.choice(("\n\n", "\n")).join(blocks)
