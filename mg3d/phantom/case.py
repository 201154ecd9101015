"""One patient examined once: who, when, what is wrong. Every layout starts from this."""

from collections.abc import Sequence
from dataclasses import dataclass

from mg3d.phantom.anatomy import Anatomy, draw_anatomy
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import Finding, draw_findings
from mg3d.phantom.reports import Person, Report, compose
from mg3d.phantom.wording import FAMILY_NAMES, GIVEN_NAMES

Date = tuple[int, int, int]
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """``draws`` is the study's own stream; anatomy and person come from the patient's."""

    draws: Draws
    anatomy: Anatomy
    findings: tuple[Finding, ...]
    person: Person
    birth_date: Date
    study_date: Date

    def report(self, num_slices: int) -> Report:
        """The report written from exactly these findings."""
        year, month, day = self.study_date
        earlier = written_date((year - 1, month, day), self.draws.child("earlier"))
        return compose(self.findings, self.draws.child("report"), self.person, earlier, num_slices)


def draw_case(
    patient: Draws, study: Draws, index: int, findings: Sequence[Finding] | None = None
) -> Case:
    """A case from the patient's and the study's stream.

    ``index`` numbers patients and makes ids unique; ``findings`` defaults to random ones.
    """
    anatomy = draw_anatomy(patient.child("anatomy"))
    who = patient.child("person")
    birth = (who.integer(1935, 1995), who.integer(1, 12), who.integer(1, 28))
    when = study.child("date")
    date = (when.integer(2019, 2023), when.integer(1, 12), when.integer(1, 28))
    person = Person(
        family_name=who.choice(FAMILY_NAMES),
        given_name=who.choice(GIVEN_NAMES[anatomy.sex]),
        sex=anatomy.sex,
        age=date[0] - birth[0] - ((date[1], date[2]) < (birth[1], birth[2])),
        patient_id=f"{who.digits(4)}{index:04d}",
        physician=who.choice(FAMILY_NAMES),
    )
    if findings is None:
        findings = draw_findings(study.child("findings"))
    return Case(study, anatomy, tuple(findings), person, birth, date)


def dicom_date(date: Date) -> str:
    """YYYYMMDD."""
    return f"{date[0]:04d}{date[1]:02d}{date[2]:02d}"


def written_date(date: Date, draws: Draws) -> str:
    """A date as people write it: ISO, German, American or in words."""
    year, month, day = date
    return draws.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year}",
            f"{day} {MONTHS[month - 1]} {year}",
        )
    )
