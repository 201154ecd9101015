"""A report says exactly what was planted. The reader here is written apart from the wording."""

import re

import pytest

from mg3d.phantom.case import Case, draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import CATALOGUE, Finding, kinds_of
from mg3d.phantom.reports import export_text, measurement

KEYWORDS = {
    "pleural_effusion": r"pleural (effusion|fluid)",
    "pneumothorax": r"pneumothorax",
    "consolidation": r"consolidat",
    "ground_glass": r"ground.glass",
    "atelectasis": r"atelectasis",
    "emphysema": r"emphysema",
    "fibrosis": r"fibrosis",
    "mosaic": r"mosaic",
    "septal_thickening": r"interlobular sept",
    "peribronchial_thickening": r"peribronchial",
    "bronchiectasis": r"bronchiectasis",
    "nodule": r"nodule",
    "mass": r"\bmass\b",
    "lymphadenopathy": r"lymph",
    "cardiomegaly": r"cardiomegaly|heart is enlarged|enlargement of the cardiac",
    "pericardial_effusion": r"pericardial",
    "coronary_calcification": r"coronary",
    "aortic_calcification": r"aort",
    "hiatal_hernia": r"hernia",
    "rib_fracture": r"fracture",
    "device": r"pacemaker|chest port|sternotomy",
    "scoliosis": r"scoliosis",
    "steatosis": r"steatosis",
}
CASES = [draw_case(Draws(1, "p", n), Draws(1, "s", n), n) for n in range(200)]


def read(sentences: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Kinds that the sentences affirm, and kinds that they deny."""
    affirmed, denied = set(), set()
    for sentence in sentences:
        found = {kind for kind, words in KEYWORDS.items() if re.search(words, sentence.lower())}
        (denied if sentence.startswith("No ") else affirmed).update(found)
    return affirmed, denied


def test_every_kind_has_a_keyword() -> None:
    assert set(KEYWORDS) == set(CATALOGUE)


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.person.patient_id)
def test_findings_are_affirmed_and_nothing_else(case: Case) -> None:
    report = case.report(48)
    affirmed, denied = read(report.findings)
    assert affirmed == kinds_of(case.findings)
    assert not denied & affirmed
    in_brief, denied_in_brief = read(report.impression)
    assert in_brief <= affirmed
    assert len(in_brief) == min(len(affirmed), 5)
    assert not denied_in_brief


@pytest.mark.parametrize("case", CASES[1::4], ids=lambda case: case.person.patient_id)
def test_side_lobe_size_and_grade_are_said(case: Case) -> None:
    text = " ".join(case.report(48).findings).lower()
    for finding in case.findings:
        if finding.side:
            assert ("bilateral" if finding.side == "both" else finding.side) in text
        if "lobe" in finding.location:
            assert f"{finding.side} {finding.location}" in text
        if finding.size_mm[0]:
            long = finding.size_mm[0]
            assert re.search(rf"\b{long} mm|\b{long / 10:g} cm".replace(".", r"\."), text)


def test_measurement_styles() -> None:
    texts = {measurement((20, 15), Draws(0, "m", n)) for n in range(30)}
    assert texts == {"1.5 x 2 cm", "15 x 20 mm", "20 mm"}


def test_normal_lungs_are_only_called_clear_when_they_are() -> None:
    from mg3d.phantom.reports import LUNG_KINDS

    for case in CASES:
        if "lungs are clear" in " ".join(case.report(48).findings):
            assert not kinds_of(case.findings) & LUNG_KINDS


def test_export_has_sections_in_several_spellings_and_identifiers() -> None:
    texts = []
    for case in CASES:
        text = export_text(
            case.report(48), Draws(0, "e", *case.draws.name), case.person, "2020-01-02"
        )
        texts.append(text)
        assert re.search(r"^findings:?( |$)", text, re.I | re.M)
        assert re.search(r"^(impression|conclusion):?( |$)", text, re.I | re.M)
    for pattern in (
        r"^FINDINGS:", r"^Findings$", r"^CONCLUSION:", r"^IMPRESSION$", r"COMPARISON:", r"^1\. ",
        r"\d x \d", r"Dr\. ", r"^MRN: \d{8}$", r"^Patient: M",
    ):  # fmt: skip
        share = sum(bool(re.search(pattern, text, re.M)) for text in texts) / len(texts)
        assert 0.02 < share < 0.98, pattern
    assert len(set(texts)) == len(texts)
    assert any(max(map(len, text.split("\n"))) <= 72 for text in texts)
    assert any(not text.rstrip().endswith(".") for text in texts)


def test_wording_varies_for_one_finding() -> None:
    finding = (Finding("pleural_effusion", "left", severity=2),)
    said = {
        sentence
        for n in range(60)
        for sentence in draw_case(Draws(0, "v"), Draws(0, "v", n), 0, finding).report(48).findings
        if "leural" in sentence
    }
    assert said == {
        "Large left pleural effusion.",
        "There is a large amount of left pleural fluid.",
        "Left pleural effusion of large size layering dependently.",
    }
