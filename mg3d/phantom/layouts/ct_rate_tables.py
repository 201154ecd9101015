"""CT-RATE's tables (spec/downstream 2): reports, metadata, labels, a row per volume."""

from mg3d.phantom.case import Case, dicom_date
from mg3d.phantom.findings import kinds_of
from mg3d.phantom.layouts import Row
from mg3d.phantom.reports import prose
from mg3d.phantom.scan import Scan
from mg3d.phantom.wording import CT_RATE_LABELS

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


def report_row(case: Case, name: str, num_slices: int, is_not_given: bool, index: int) -> Row:
    """Some sections of some reports are not given, or all of this one."""
    report = case.report(num_slices)
    texts = [report.history, report.technique, prose(report.findings), prose(report.impression)]
    if index % 4 == 0:
        texts[0] = NOT_GIVEN
    if index % 9 == 4:
        texts[3] = NOT_GIVEN
    if is_not_given:
        texts = [NOT_GIVEN] * 4
    return dict(zip(REPORT_COLUMNS, (name, *texts), strict=True))


def metadata_row(case: Case, name: str, scan: Scan, **known_better: str) -> Row:
    """All columns, of which the phantom knows some."""
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
        "ZSpacing": f"{dz:g}",
        "StudyDate": dicom_date(case.study_date),
        **known_better,
    }
    return {column: known.get(column, "") for column in METADATA_COLUMNS}


def label_row(case: Case, name: str) -> Row:
    """The 18 labels, 0 or 1."""
    present = kinds_of(case.findings)
    flags = {
        label: str(int(bool(present.intersection(kinds))))
        for label, kinds in CT_RATE_LABELS.items()
    }
    return {"VolumeName": name, **flags}
