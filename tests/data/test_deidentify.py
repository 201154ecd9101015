"""De-identification: what is replaced, what is not, and that nothing planted survives."""

import calendar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.deidentify import deidentify, num_identified
from mg3d.data.report_text import num_visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Seen on 03/12/2021.", "Seen on [DATE]."),
        ("Prior of 2020-01-31 and 3.12.2021, 4/5/21.", "Prior of [DATE] and [DATE], [DATE]."),
        ("Since March 3, 2021 and 12 Dec 2019.", "Since [DATE] and [DATE]."),
        ("CT of May 2020.", "CT of [DATE]."),
        ("Discussed with Dr. Jane Smith.", "Discussed with Dr. [NAME]."),
        ("Drs. Smith and Jones agree. Lungs clear.", "Drs. [NAME] agree. Lungs clear."),
        ("Patient DOE^JANE^M here.", "Patient [NAME] here."),
        ("Read by John Q. Public, MD.", "Read by [NAME]."),
        ("Reviewed by Dr. Lind on 2022-06-06.", "Reviewed by Dr. [NAME] on [DATE]."),
        ("MRN: 123456, accession CT-99812.", "MRN: [ID], accession [ID]."),
        ("UID 1.2.840.113619.2.55", "UID [ID]"),
        ("Case 00123456 filed.", "Case [ID] filed."),
        (
            "Call (555) 123-4567, +49 170 1234567 or ext. 4412.",
            "Call [PHONE], [PHONE] or ext. [PHONE].",
        ),
        ("Mail a.b@c.org.", "Mail [EMAIL]."),
    ],
)
def test_identifiers_become_placeholders(text: str, expected: str) -> None:
    assert deidentify(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "A 1.5 x 2 cm nodule, previously 12/14/10 mm, HU 40.5.",
        "Image 4/120 of series 3. Levels T12 to L1, segment S6.",
        "Compared with prior MR. No effusion. There may be 2 cysts.",
        "About 20 % of 12 nodules; stage IIIA, T2N1M0; 120 kV, 3.5.2 software.",
        "No CT of the year 2019 is available. DR CHEST shows less.",
    ],
)
def test_measurements_are_not_identifiers(text: str) -> None:
    assert deidentify(text) == (text, {})


def test_identifying_columns_of_the_row_are_scrubbed() -> None:
    row = {
        "AccessionNumber": "ACC77",
        "PatientName": "ROWAN^ELEANOR",
        "ReferringPhysician": "Vesterholt",
        "MRN": "HX-22",
        "Age": "70",
        "ReportText": "",
    }
    text = "Ms Rowan (HX-22, ACC77), sent by Vesterholt at 70. Eleanor's scan; a rowan tree."
    assert deidentify(text, row)[0] == (
        "Ms [NAME] ([ID], [ID]), sent by [NAME] at 70. [NAME]'s scan; a rowan tree."
    )


DAYS, MONTHS, YEARS = st.integers(1, 28), st.integers(1, 12), st.integers(1950, 2049)
NAMES = st.sampled_from(
    ["Smith", "O'Hara", "Müller-Lüdenscheidt", "Şahin", "van der Berg", "Łukasz Nowak", "MacDonald"]
)
ENGLISH_MONTHS = list(calendar.month_name)[1:]
DIGITS = st.integers(10**6, 10**9 - 1).map(str)
PLANTED = st.one_of(
    st.builds(
        lambda form, d, m, y: form.format(d=d, m=m, y=y, name=ENGLISH_MONTHS[m - 1]),
        st.sampled_from(
            [
                *("{y}-{m:02d}-{d:02d}", "{m}/{d}/{y}", "{d:02d}.{m:02d}.{y}", "{y}{m:02d}{d:02d}"),
                *("{d} {name} {y}", "{name} {d}, {y}", "{d}th of {name} {y}", "{name} {y}"),
                *("{y}-{m:02d}-{d:02d}T10:31:22", "{d:02d}.{m:02d}.{y} at 7:05 PM"),
            ]
        ),
        DAYS,
        MONTHS,
        YEARS,
    ),
    st.builds(
        "{} {}".format, st.sampled_from(["Dr.", "Dr", "Prof.", "Mrs.", "Mr", "Ms", "Nurse"]), NAMES
    ),
    st.builds("{} {}, MD".format, st.sampled_from(["J.", "Ann"]), NAMES),
    st.builds("{} {}".format, st.sampled_from(["MRN:", "accession", "Patient ID:"]), DIGITS),
    st.builds("1.2.840.{}.{}.7".format, DIGITS, DIGITS),
    DIGITS.map(lambda n: f"+49 {n[:3]} {n[3:]}"),
    DIGITS.map(lambda n: f"({n[:3]}) {n[3:6]}-{n[:4]}"),
    st.builds("{}@{}.org".format, st.sampled_from(["a.b", "x"]), st.sampled_from(["c", "h-1.d"])),
)
CLEAN = [
    "The nodule of 1.5 x 2 cm is stable (image 4/120).",
    "No effusion.",
    "HU 40.5 at T12-L1, 120 kV, as in the prior study.",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(PLANTED, min_size=3, max_size=3))
def test_nothing_planted_survives_and_nothing_else_goes(planted: list[str]) -> None:
    text = " ".join(
        f"{clean} Noted {secret}." for clean, secret in zip(CLEAN, planted, strict=True)
    )
    found, replaced = deidentify(text)
    around = found  # what was planted among: "12" of a date is not that of T12
    for clean in CLEAN:
        assert clean in found
        around = around.replace(clean, "")
    for secret in planted:
        words = [word.strip(".,:()") for word in secret.split()]
        identifying = {word for word in words if len(word) > 1} - NOT_IDENTIFYING
        assert not [word for word in identifying if word in around.replace("[", " ")], found
    assert num_identified(found) + replaced.total() == num_visible(text)


NOT_IDENTIFYING = {"Dr", "Prof", "Mrs", "Mr", "Ms", "Nurse", "MRN", "ID", "Patient", "accession"}
NOT_IDENTIFYING |= {"of", "at", "PM", "+49"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Follow-up of June 3 and 4 April.", "Follow-up of [DATE] and [DATE]."),
        ("Seen 12-Mar-21, 03-04-21 and 12. März 2021.", "Seen [DATE], [DATE] and [DATE]."),
        ("A 93-year-old man, a 64-year-old woman.", "A [AGE]-year-old man, a 64-year-old woman."),
        ("See https://pacs.org/x?id=7.", "See [WEB]."),
    ],
)
def test_more_identifiers(text: str, expected: str) -> None:
    assert deidentify(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    ["seen by smith in room 4", "Smith reports pain.", "On 3/12 it was smaller.", "MRN 12 AB"],
)
def test_what_the_rules_cannot_catch(text: str) -> None:
    """As the module says; if one is caught some day, its docstring is to change."""
    assert deidentify(text) == (text, {})


def test_long_runs_of_letters_take_no_exponential_time() -> None:
    for run in ("Ş" * 5000, "Aa" * 3000, "A." * 3000, "1." * 3000, "a-" * 3000, "Ab " * 3000):
        deidentify(run)
