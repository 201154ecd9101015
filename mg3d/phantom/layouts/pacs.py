"""A hospital's export for pre-training: ``dicom/`` (a tree of series) and ``reports.csv``.

Every patient's studies are good; the bad inputs that a real export has are in ``clutter``, as
extra patients, so that they cost no training data.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.paths import DICOM, REPORTS
from mg3d.phantom.canvas import Vector
from mg3d.phantom.case import Case, dicom_date, draw_case, written_date
from mg3d.phantom.dicom_series import (
    STORAGES,
    Series,
    make_slices,
    study_header,
    write_slices,
)
from mg3d.phantom.draws import Draws
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.reports import export_text
from mg3d.phantom.scan import acquire, draw_grid

COLUMNS = ("AccessionNumber", "PatientID", "PatientName", "StudyDate", "ReportText")


def table_offset(draws: Draws) -> Vector:
    """Where the patient lies in the scanner's coordinates, LPS mm."""
    return (
        draws.integer(-200, 200) / 10.0,
        draws.integer(-1800, -1200) / 10.0,
        draws.integer(-9000, 3000) / 10.0,
    )


def report_row(case: Case, accession: str, text: str) -> Row:
    """One row of ``reports.csv``."""
    return {
        "AccessionNumber": accession,
        "PatientID": case.person.patient_id,
        "PatientName": f"{case.person.family_name}, {case.person.given_name}",
        "StudyDate": dicom_date(case.study_date),
        "ReportText": text,
    }


def report_text(case: Case, num_slices: int) -> str:
    """The exported text of a case's report."""
    draws = case.draws.child("export")
    date = written_date(case.study_date, draws)
    return export_text(case.report(num_slices), draws, case.person, date)


def accession_number(case: Case, index: int, study: int) -> str:
    """Unique per study: random digits, then the patient's and the study's number."""
    return f"A{case.draws.child('accession').digits(4)}{index:04d}{study}"


def count(params: WriteCohort) -> int:
    return params.num_patients


def num_studies(params: WriteCohort, index: int) -> int:
    """One patient in eight was examined twice, one of those three times."""
    draws = Draws(params.seed, "pacs", index, "num_studies")
    return 1 if draws.chance(0.875) else draws.choice((2, 2, 2, 3))


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    patient = Draws(params.seed, "pacs", index)
    rows = []
    for study in range(num_studies(params, index)):
        case = draw_case(patient, patient.child("study", study), index)
        accession = accession_number(case, index, study)
        folder = root / DICOM.name / f"PAT{index:05d}" / f"STU{study:03d}"
        num_slices = _write_study(folder, case, accession, params)
        rows.append(report_row(case, accession, report_text(case, num_slices)))
    return rows


def _write_study(folder: Path, case: Case, accession: str, params: WriteCohort) -> int:
    """Write a study's one or two series; returns the number of slices of the first."""
    draws = case.draws.child("series")
    depth, height, width = params.shape_voxels
    depth -= draws.integer(0, depth // 6)
    stretch = 1.0
    if draws.chance(0.3):
        height = height * 5 // 6
        stretch = draws.choice((1.0, 1.15))
    header = study_header(case, accession)
    offset = table_offset(draws)
    extension = draws.choice(("", "", ".dcm"))
    falls = draws.chance(0.4)
    storage = draws.choice(STORAGES)
    grid = draw_grid(
        case.anatomy, (depth, height, width), draws.child("grid"), draws.chance(0.08), stretch
    )
    plan = [(grid, draws.choice(("soft", "sharp")), "Thorax 5.0")]
    if draws.chance(0.04):
        thick = draw_grid(case.anatomy, smaller((depth, height, width), 1, 2), draws.child("thick"))
        plan.append((thick, "soft", "Thorax 10.0 MPR ax"))
    for number, (grid, kernel, description) in enumerate(plan, 1):
        stream = case.draws.child("series", number)
        scan = acquire(case.anatomy, case.findings, grid, case.draws, kernel)
        series = Series(number, f"{description} {kernel}", storage, extension, falls)
        slices = make_slices(scan, header, series, offset, stream)
        write_slices(folder / f"SER{number:03d}", slices, stream.child("names"), extension)
    return depth


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    shuffled = Draws(params.seed, "pacs", "rows").shuffled(rows)
    write_csv(root / REPORTS.name, COLUMNS, shuffled, quote_all=True)
