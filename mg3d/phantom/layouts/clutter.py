"""The bad inputs of a real export, a fixed few, one for each reason that the ledger knows.

Each is a small extra patient under ``dicom/`` (or a stray file) and its rows of ``reports.csv``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from mg3d.params import WriteCohort
from mg3d.paths import DICOM
from mg3d.phantom.case import Case, draw_case
from mg3d.phantom.dicom_series import (
    STORAGES,
    Series,
    make_slices,
    study_header,
    write_file,
    write_slices,
)
from mg3d.phantom.draws import Draws
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.pacs import accession_number, report_row, report_text, table_offset
from mg3d.phantom.scan import acquire, draw_grid

SHAPE = (12, 32, 32)
FIRST_PATIENT = 9000
SECONDARY_CAPTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
README = """This CD was written by the radiology workstation.
Open the viewer to see the images. Not for diagnostic use.
"""


@dataclass
class Patient:
    """One bad example under construction: where it goes, and what a good one would look like."""

    folder: Path
    case: Case
    accession: str
    rows: list[Row] = field(default_factory=list)

    def slices(self, number: int = 1, description: str = "Thorax") -> list[FileDataset]:
        """A good small series of the study."""
        draws = self.case.draws.child("series", number)
        grid = draw_grid(self.case.anatomy, SHAPE, draws.child("grid"))
        scan = acquire(self.case.anatomy, self.case.findings, grid, self.case.draws, "soft")
        series = Series(number, description, STORAGES[0])
        header = study_header(self.case, self.accession)
        return make_slices(scan, header, series, table_offset(draws.child("table")), draws)

    def write(self, slices: list[FileDataset], number: int = 1) -> list[Path]:
        """Write slices as series ``number``; returns the paths by slice."""
        names = self.case.draws.child("names", number)
        return write_slices(self.folder / f"SER{number:03d}", slices, names)

    def report(self, text: str | None = None) -> None:
        """Add a row to ``reports.csv``: the study's own report, or ``text``."""
        if text is None:
            text = report_text(self.case, SHAPE[0])
        self.rows.append(report_row(self.case, self.accession, text))


def _not_dicom(patient: Patient) -> None:
    patient.folder.mkdir(parents=True)
    (patient.folder.parent / "README.txt").write_text(README, encoding="utf-8")
    patient.folder.rmdir()


def _truncated(patient: Patient) -> None:
    """A good study with a report; beside its good series one whose transfer broke off."""
    patient.write(patient.slices())
    paths = patient.write(patient.slices(2), 2)
    whole = paths[4].read_bytes()
    cut = paths[4].with_suffix(".dcm")
    paths[4].rename(cut)
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    patient.report()


def _undecodable(patient: Patient) -> None:
    """The only series is said to be JPEG 2000 and is not."""
    slices = patient.slices()
    for path, data in zip(patient.write(slices), slices, strict=True):
        data.PixelData = encapsulate([b"\xff\x4f\xff\x51 not a JPEG 2000 code stream "])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        write_file(path, data, JPEG2000Lossless)
    patient.report()


def _localizer_secondary_mr(patient: Patient) -> None:
    """A good study with the other objects that scanners add."""
    patient.write(patient.slices())
    scout = patient.slices(2, "Topogram")[:1]
    scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    # A frontal projection: rows run to the left, columns to the feet.
    scout[0].ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    patient.write(scout, 2)
    dose = patient.slices(3, "Dose report")[:1]
    dose[0].SOPClassUID = SECONDARY_CAPTURE_STORAGE
    dose[0].ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    dose[0].ConversionType = "WSD"
    patient.write(dose, 3)
    other = patient.slices(4, "t2 localizer")[:2]
    for data in other:
        data.SOPClassUID = MR_IMAGE_STORAGE
        data.Modality = "MR"
    patient.write(other, 4)
    enhanced = patient.slices(5, "Thorax enhanced")[:1]
    enhanced[0].SOPClassUID = ENHANCED_CT_STORAGE
    patient.write(enhanced, 5)
    patient.report()


def _bad_geometry(patient: Patient) -> None:
    """A good study; further series with few slices, a doubled position, a mixed matrix, no tag."""
    patient.write(patient.slices())
    patient.write(patient.slices(2, "Biopsy")[:4], 2)
    doubled = patient.slices(3)
    doubled[5].ImagePositionPatient = doubled[6].ImagePositionPatient
    patient.write(doubled, 3)
    mixed = patient.slices(4)
    mixed[3].PixelSpacing = ["2.5", "2.5"]
    patient.write(mixed, 4)
    untagged = patient.slices(5)
    for data in untagged:
        del data.ImageOrientationPatient
    patient.write(untagged, 5)
    patient.report()


def _missing_slice(patient: Patient) -> None:
    """The study's only series has a hole, so its report stays alone."""
    slices = patient.slices()
    del slices[5]
    patient.write(slices)
    patient.report()


def _mixed_patients(patient: Patient) -> None:
    """Half of the slices carry another patient's id."""
    slices = patient.slices()
    for data in slices[6:]:
        data.PatientID = f"{FIRST_PATIENT:08d}"
        data.PatientName = "Misfiled^Person"
    patient.write(slices)
    patient.report()


def _mixed_studies(patient: Patient) -> None:
    """Half of the slices carry another study's UID."""
    slices = patient.slices()
    other = patient.case.draws.child("other study").uid()
    for data in slices[6:]:
        data.StudyInstanceUID = other
    patient.write(slices)


def _second_copy(patient: Patient) -> None:
    """One file of a good study exported twice."""
    slices = patient.slices()
    path = patient.write(slices)[0]
    path.with_name(f"{path.name}_copy").write_bytes(path.read_bytes())
    patient.report()


def _no_report(patient: Patient) -> None:
    patient.write(patient.slices())


def _no_study(patient: Patient) -> None:
    patient.report()


def _empty_report(patient: Patient) -> None:
    patient.write(patient.slices())
    patient.report("  \n ")


def _not_given(patient: Patient) -> None:
    patient.write(patient.slices())
    patient.report("Not given.")


def _two_reports(patient: Patient) -> None:
    """Two different texts under one accession number."""
    patient.write(patient.slices())
    patient.report()
    patient.case = replace(patient.case, findings=())
    patient.report()


def _no_key(patient: Patient) -> None:
    """A report whose accession number got lost."""
    patient.accession = ""
    patient.report()


def _no_sentences(patient: Patient) -> None:
    """Headings and a form's dashes, but nothing said."""
    patient.write(patient.slices())
    patient.report("FINDINGS:\n-- -- -- -- -- --\n\nIMPRESSION:\n-- -- -- --\n")


BAD: tuple[Callable[[Patient], None], ...] = (
    _not_dicom,
    _truncated,
    _undecodable,
    _localizer_secondary_mr,
    _bad_geometry,
    _missing_slice,
    _mixed_patients,
    _mixed_studies,
    _second_copy,
    _no_report,
    _no_study,
    _empty_report,
    _not_given,
    _two_reports,
    _no_key,
    _no_sentences,
)


def count(params: WriteCohort) -> int:
    return len(BAD)


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    number = FIRST_PATIENT + index
    stream = Draws(params.seed, "clutter", index)
    case = draw_case(stream, stream.child("study"), number)
    folder = root / DICOM.name / f"PAT{number:05d}" / "STU000"
    patient = Patient(folder, case, accession_number(case, number, 0))
    BAD[index](patient)
    return patient.rows


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    raise AssertionError("clutter goes into the tables of pacs")
