"""Sections of a report: spellings of headings, addenda, what is cut out, and no character lost."""

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.report_sections import (
    KEPT,
    findings_of,
    impression_of,
    left_out,
    split_parts,
)
from mg3d.data.report_text import normalise, num_visible


def sections(text: str) -> tuple[str, str]:
    text = normalise(text)
    parts = split_parts(text)
    return findings_of(text, parts), impression_of(text, parts)


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS: Lungs clear. IMPRESSION: Normal.", "Lungs clear.", "Normal."),
        ("Findings\nLungs clear.\n\nImpressions\nNormal.", "Lungs clear.", "Normal."),
        ("FINDING - Lungs clear.\nCONCLUSION - Normal.", "Lungs clear.", "Normal."),
        ("**FINDINGS:** Clear.\n\n**OPINION (preliminary):** Normal.", "Clear.", "Normal."),
        ("CHEST CT FINDINGS: Clear. Conclusion: Normal.", "Clear.", "Normal."),
        ("[FINDINGS]\nClear.\n=== SUMMARY ===\nNormal.", "Clear.", "Normal."),
        ("IMPRESSION: Normal.\nFINDINGS: Clear.", "Clear.", "Normal."),
        ("Report: Clear lungs.", "Clear lungs.", ""),
        ("Lungs clear. No effusion.", "Lungs clear. No effusion.", ""),
        ("FINDINGS: A.\nTECHNIQUE: Helical.\nFINDINGS: B.", "A.\nB.", ""),
        (
            "INDICATION: Cough.\nCOMPARISON: None.\n\nClear.\n\nIMPRESSION: Normal.",
            "Clear.",
            "Normal.",
        ),
        ("Lungs are clear.\nIMPRESSION: Normal.", "Lungs are clear.", "Normal."),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nElectronically signed by: A B, MD",
            "Clear.",
            "Normal.",
        ),
        (
            "FINDINGS: Clear.\nIMPRESSION: Normal.\nDictated by Dr. A on 3/4/2021",
            "Clear.",
            "Normal.",
        ),
        # The words alone, in a sentence, are no headings.
        ("No new findings. The impression is of\nfindings: as before.", None, ""),
        ("FINDINGS: LUNGS: Clear. HEART: Large.", "LUNGS: Clear. HEART: Large.", ""),
    ],
)
def test_headings(text: str, findings: str | None, impression: str) -> None:
    expected = normalise(text).replace("\n", " ") if findings is None else findings
    assert sections(text) == (expected, impression)


def test_characters_left_out_are_counted_by_rule() -> None:
    # "TECHNIQUE:Helical." and "FINDINGS:" without blanks: 10 + 8 + 9
    text = "TECHNIQUE: Helical.\nFINDINGS: Clear."
    assert left_out(text, split_parts(text)) == {"heading": 19, "technique": 8}


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        # spellings
        ("*** FINDINGS ***\nClear.\n*** IMPRESSION ***\nNormal.", "Clear.", "Normal."),
        ("<b>FINDINGS</b>:<br/>Clear.<p>OPINION</p>Normal.", "Clear.", "Normal."),
        ("Results: Clear.\nImpresion : Normal.", "Clear.", "Normal."),
        ("FINDINGS/IMPRESSION: Clear.", "Clear.", ""),
        ("FINDINGS: Clear.\nIMPRESSION/PLAN: Normal.", "Clear.", "Normal."),
        (
            "CT CHEST\nHISTORY: Cough.\nTECHNIQUE - Helical.\nCOMPARISON: None.\n"
            "Findings -\nClear.\nCONCLUSIONS\n1. Normal.\nRECOMMENDATION: None.",
            "Clear.",
            "1. Normal.",
        ),
        # addenda
        (
            "FINDINGS: A.\nIMPRESSION: B.\nSigned by Dr. C\nADDENDUM: D.",
            "A.",
            "B.\nD.",
        ),
        (
            "FINDINGS: A.\nADDENDUM #2: D.\nADDENDUM #1:\nC.\nIMPRESSION: B.",
            "A.",
            "B.\nC.\nD.",
        ),
        ("FINDINGS: A.\nADDENDUM 2: D.\nADDENDUM:\nC.", "A.", "D.\nC."),
        ("ADDENDUM: C.\nEND OF ADDENDUM\nA. Clear.", "A. Clear.", "C."),
        (
            "FINDINGS: A.\nIMPRESSION: B.\nADDENDUM:\nFINDINGS: C.\nIMPRESSION: D.",
            "A.\nC.",
            "B.\nD.",
        ),
        # templates and boilerplate
        (
            "FINDINGS: Clear lungs. This report was generated using voice\nrecognition software. "
            "Heart normal.\nDictated but not read\nNo effusion.",
            "Clear lungs. Heart normal.\nNo effusion.",
            "",
        ),
        ("FINDINGS: Nodule of *** mm. [ ] Emphysema.", "Nodule of mm. Emphysema.", ""),
        ("Clear.\n*** Final Report ***\nThank you for referring this patient.", "Clear.", ""),
        ("FINDINGS: Clear.\nElectronically signed by A B\nnext day", "Clear.", ""),
        # leftovers of other languages
        (
            "FINDINGS: Trachea is open. Her iki akciğerde nodül izlenmektedir. No effusion.",
            "Trachea is open. No effusion.",
            "",
        ),
        (
            "FINDINGS: Clear.\nKein Nachweis eines Pleuraergusses.\nIMPRESSION: Seen by Dr. Şahin.",
            "Clear.",
            "Seen by Dr. Şahin.",
        ),
        ("Her iki akciğer normaldir. Plevral efüzyon saptanmadı.", "", ""),
    ],
)
def test_reports_as_they_are_in_the_wild(text: str, findings: str, impression: str) -> None:
    assert sections(text) == (findings, impression)


@pytest.mark.parametrize(
    "text",
    [
        "Pectus excavatum and situs inversus are seen.",
        "The heart is normal in size. No nodule in the left lung.",
        "Dr. Müller and Prof. Yıldız were told of the nodule.",
        "Links to the hand: an in vivo study was also sol.",
        "We reviewed nodules of prior studies; the report is unchanged.",
    ],
)
def test_english_stays(text: str) -> None:
    assert sections(text) == (text, "")


PIECES = st.sampled_from(
    [
        *(
            "FINDINGS:",
            "Impression -",
            "\nCONCLUSION\n",
            "TECHNIQUE: ",
            "HISTORY\n",
            "ADDENDUM #2: ",
        ),
        *("END OF ADDENDUM\n", "Addendum: ", "Electronically signed by ", "RECOMMENDATION: "),
        *("Dictated but not read. ", "This report was generated by software.\n", "*** ", "[ ] "),
        *(
            "Her iki akciğerde nodül izlendi. ",
            "Kein Nachweis eines Ergusses.\n",
            "\n\n",
            "\n",
            " ",
        ),
        *(
            "No effusion. ",
            "1.5 cm nodule",
            "the lungs are clear",
            "Heart normal.",
            ", ",
            ": ",
            "-",
        ),
    ]
)


@settings(max_examples=120, deadline=None)
@given(st.lists(PIECES, max_size=20).map("".join))
def test_no_character_is_lost_but_by_a_named_rule(text: str) -> None:
    text = normalise(text).strip()
    parts = split_parts(text)
    assert "".join(text[part.start : part.end] for part in parts) == text
    assert all(before.end == after.start for before, after in pairwise(parts))
    kept = num_visible(findings_of(text, parts)) + num_visible(impression_of(text, parts))
    assert kept + left_out(text, parts).total() == num_visible(text)
    assert not left_out(text, parts).keys() & set(KEPT)
    # The kept ones are the kept parts', each section's in its order.
    findings = "".join(text[p.start : p.end] for p in parts if p.rule == "findings")
    assert "".join(findings_of(text, parts).split()) == "".join(findings.split())


def test_many_headings_and_sentences_take_linear_time() -> None:
    """10,000 sentences, each after its own heading: under 10 times the time of 2,500, not 16."""

    def seconds(count: int) -> float:
        text = "FINDINGS: " + " ".join(f"Nodule {i}. Heart: Normal size." for i in range(count))
        text += "".join(f"\nTECHNIQUE: Pass {i}.\nFINDINGS: Sentence {i}." for i in range(count))
        start = time.process_time()
        sections(text)
        return time.process_time() - start

    assert seconds(10_000) < 10 * max(seconds(2_500), 0.05)
