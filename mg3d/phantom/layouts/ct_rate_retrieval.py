"""CT-RATE (spec/downstream 2, 3): version 2 NIfTI, already in HU; reports, metadata, labels.

Scans of patients 1, 2, ...; every eighth patient has scans a and b. Some scans have two
reconstructions that share a report. Two extra scans are bad: one is no chest (and listed), one has
only ``Not given.`` for a report.
"""

from collections.abc import Sequence
from pathlib import Path

from mg3d.params import WriteCohort
from mg3d.phantom.case import Case, dicom_date, draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.encoders import write_nifti_gz
from mg3d.phantom.findings import kinds_of
from mg3d.phantom.layouts import Row
from mg3d.phantom.layouts.tables import smaller, write_csv
from mg3d.phantom.reports import prose
from mg3d.phantom.scan import Scan, acquire, draw_grid
from mg3d.phantom.wording import CT_RATE_LABELS

NAME = "ct_rate_retrieval"
NOT_GIVEN = "Not given."
REPORT_COLUMNS = (
    "VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN",
)  # fmt: skip
METADATA_COLUMNS = (
    "VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex",
    "PatientAge", "ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient",
    "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime", "XRayTubeCurrent",
    "Exposure", "FilterType", "GeneratorPower", "FocalSpots", "ConvolutionKernel",
    "PatientPosition", "RevolutionTime", "SingleCollimationWidth", "TotalCollimationWidth",
    "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor", "DataCollectionCenterPatient",
    "ReconstructionTargetCenterPatient", "ExposureModulationType", "CTDIvol",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SamplesPerPixel",
    "PhotometricInterpretation", "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "NumberofSlices", "ZSpacing", "StudyDate",
)  # fmt: skip
LABEL_COLUMNS = ("VolumeName", *CT_RATE_LABELS)


def scan_names(num_scans: int) -> list[str]:
    """``valid_1_a``, ``valid_2_a``, ... with a second scan of every eighth patient."""
    names: list[str] = []
    patient = 0
    while len(names) < num_scans:
        patient += 1
        names += [f"valid_{patient}_{letter}" for letter in ("ab" if patient % 8 == 3 else "a")]
    return names[:num_scans]


def count(params: WriteCohort) -> int:
    return params.num_retrieval_cases + 2


def write_case(root: Path, params: WriteCohort, index: int) -> list[Row]:
    num_scans = params.num_retrieval_cases
    last = int(scan_names(num_scans)[-1].split("_")[1])
    is_no_chest, is_not_given = index == num_scans, index == num_scans + 1
    scan_name = (
        scan_names(num_scans)[index]
        if index < num_scans
        else f"valid_{last + index - num_scans + 1}_a"
    )
    number, letter = scan_name.split("_")[1:]
    patient = Draws(params.seed, NAME, number)
    case = draw_case(patient, patient.child("scan", letter), int(number))
    draws = case.draws.child("grid")
    depth, height, width = smaller(params.shape_voxels, 5, 6)
    grid = draw_grid(case.anatomy, (depth - draws.integer(0, depth // 5), height, width), draws)
    if is_no_chest:  # the abdomen below the lungs
        grid = grid.moved((0.0, 0.0, -2.2 * case.anatomy.half_height_mm))
    rows = []
    kernels = ("soft", "sharp") if index % 15 == 2 else ("soft",)
    for reconstruction, kernel in enumerate(kernels, 1):
        name = f"{scan_name}_{reconstruction}.nii.gz"
        scan = acquire(
            case.anatomy, case.findings, grid, case.draws.child("scan", reconstruction), kernel
        )
        folder = root / "dataset" / "valid_fixed" / f"valid_{number}" / scan_name
        write_nifti_gz(folder / name, scan.hu, grid)
        rows.append(
            {
                **_report(case, name, grid.shape[0], is_not_given, index),
                **_metadata(case, name, scan, index),
                **_labels(case, name),
                "no_chest": "1" if is_no_chest else "",
            }
        )
    return rows


def _report(case: Case, name: str, num_slices: int, is_not_given: bool, index: int) -> Row:
    report = case.report(num_slices)
    texts = [report.history, report.technique, prose(report.findings), prose(report.impression)]
    if index % 4 == 0:
        texts[0] = NOT_GIVEN
    if index % 9 == 4:
        texts[3] = NOT_GIVEN
    if is_not_given:
        texts = [NOT_GIVEN] * 4
    return dict(zip(REPORT_COLUMNS, (name, *texts), strict=True))


def _metadata(case: Case, name: str, scan: Scan, index: int) -> Row:
    dz, dy, dx = scan.grid.spacing_mm
    depth, height, width = scan.grid.shape
    x, y, z = scan.grid.origin_mm
    known = {
        "VolumeName": name,
        "Manufacturer": "SIEMENS",
        "SeriesDescription": f"Thorax {scan.kernel}",
        "ManufacturerModelName": "Phantom",
        "PatientSex": case.person.sex,
        "PatientAge": f"{case.person.age:03d}Y",
        "ReconstructionDiameter": f"{dx * width:.1f}",
        "GantryDetectorTilt": "0",
        "ConvolutionKernel": "B60f" if scan.kernel == "sharp" else "B30f",
        "PatientPosition": "HFS",
        "ImagePositionPatient": f"[{x:.3f}, {y:.3f}, {z:.3f}]",
        "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
        "SliceLocation": f"{z:.3f}",
        "SamplesPerPixel": "1",
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": str(height),
        "Columns": str(width),
        "XYSpacing": f"[{dx:g}, {dy:g}]",
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "NumberofSlices": str(depth),
        "ZSpacing": "" if index == 7 else f"{dz:g}",
        "StudyDate": dicom_date(case.study_date),
    }
    return {column: known.get(column, "") for column in METADATA_COLUMNS}


def _labels(case: Case, name: str) -> Row:
    present = kinds_of(case.findings)
    flags = {
        label: str(int(bool(present.intersection(kinds))))
        for label, kinds in CT_RATE_LABELS.items()
    }
    return {"VolumeName": name, **flags}


def write_tables(root: Path, params: WriteCohort, rows: Sequence[Row]) -> None:
    dataset = root / "dataset"
    for path, columns in (
        (dataset / "radiology_text_reports" / "validation_reports.csv", REPORT_COLUMNS),
        (dataset / "metadata" / "validation_metadata.csv", METADATA_COLUMNS),
        (dataset / "multi_abnormality_labels" / "valid_predicted_labels.csv", LABEL_COLUMNS),
    ):
        write_csv(path, columns, ({column: row[column] for column in columns} for row in rows))
    names = [row["VolumeName"] for row in rows if row["no_chest"]]
    (dataset / "metadata" / "no_chest_valid.txt").write_text("".join(f"{n}\n" for n in names))
