"""Which series are CT of one patient; the others with the reason why not."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mg3d.data.ct.geometry import normal_of
from mg3d.data.ct.header import TAGS, Header
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
# Enhanced, and legacy converted enhanced, CT Image Storage.
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RADIATION_DOSE_REPORT = "1.2.840.10008.5.1.4.1.1.88.67"

# Values of ImageType (PS3.3 C.7.6.1.1.2, C.8.15.2.1, and vendors' own), by what they mean.
LOCALIZERS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
DOSE_REPORTS = {"DOSE_INFO", "DOSE REPORT", "DOSE"}
REFORMATS = {
    *("MPR", "REFORMATTED", "CSA MPR", "CURVED_MPR", "CPR", "MAX_IP", "MIN_IP", "MIP", "MINIP"),
    *("VOLUME_RENDER", "SURFACE_RENDER", "VRT", "PROJECTION IMAGE"),
}


MAX_SCOUTS = 2  # one from the front, one from the side
ORTHOGONAL = 0.1  # cosine of two planes' normals: within 6 degrees of a right angle


def leave_out_localizers(headers: Sequence[Header]) -> tuple[list[Header], list[Header]]:
    """(the others, localizers) of a series that is not one of localizers altogether.

    A localizer says so in ImageType; or there are at most two of them, and they stand at a right
    angle on the plane that all the others share. It must be of the others' patient and study.
    """
    said = {id(header) for header in headers if LOCALIZERS & set(header.image_type)}
    rest = [header for header in headers if id(header) not in said]
    planes = Counter(header.orientation for header in rest)
    if len(planes) > 1 and None not in planes and not any(header.frames for header in rest):
        common = next(h for h in rest if h.orientation == planes.most_common(1)[0][0])
        cosines = [abs(float(normal_of(common) @ normal_of(header))) for header in rest]
        across = [h for h, cosine in zip(rest, cosines, strict=True) if cosine < ORTHOGONAL]
        if len(across) <= min(MAX_SCOUTS, len(rest) - 2) and all(
            cosine < ORTHOGONAL or np.isclose(cosine, 1, atol=1e-3) for cosine in cosines
        ):
            said |= {id(header) for header in across}
    kept = [header for header in headers if id(header) not in said]
    owners = {(header.patient, header.study) for header in headers}
    if not kept or len(owners) > 1:
        return list(headers), []
    return kept, [header for header in headers if id(header) in said]


def check_ct_series(headers: Sequence[Header]) -> None:
    """Raise Refused unless ``headers`` are one series of axial-or-oblique CT of one patient."""
    classes = {header.sop_class for header in headers}
    if classes == {RADIATION_DOSE_REPORT}:
        raise Refused(Reason.DOSE_REPORT, "structured report")
    if any(name.startswith(SECONDARY_CAPTURE) for name in classes):
        raise Refused(Reason.SECONDARY, "secondary capture")
    others = classes - {CT_IMAGE, *MULTI_FRAME_CT}
    if others:
        raise Refused(Reason.NOT_CT, ", ".join(sorted(others)))
    if any(h.sop_class in MULTI_FRAME_CT and not h.frames for h in headers):
        raise Refused(Reason.MULTI_FRAME, "export as single-frame CT Image Storage")
    if not all(header.complete for header in headers):
        count = sum(not header.complete for header in headers)
        raise Refused(Reason.TRUNCATED, f"{count} of {len(headers)} files")
    slices = [part for header in headers for part in header.slices]
    types = {name for part in slices for name in part.image_type}
    if types & LOCALIZERS:
        raise Refused(Reason.LOCALIZER)
    if types & DOSE_REPORTS:
        raise Refused(Reason.DOSE_REPORT, "ImageType")
    if types & REFORMATS:
        raise Refused(Reason.REFORMAT, ", ".join(sorted(types & REFORMATS)))
    if any("SECONDARY" in part.image_type[1:2] for part in slices):
        raise Refused(Reason.SECONDARY, "ImageType")
    if any(header.burned_in for header in headers):
        raise Refused(Reason.BURNED_IN, "BurnedInAnnotation is YES")
    if len({header.patient for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the series")
    if len({header.study for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_STUDIES, "StudyInstanceUID differs within the series")
    for names, field in TAGS.items():
        if any(getattr(part, field) is None for part in slices):
            raise Refused(Reason.MISSING_TAG, names)
