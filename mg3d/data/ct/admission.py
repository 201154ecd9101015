"""Which series are CT of one patient; the others with the reason why not."""

from collections.abc import Sequence

from mg3d.data.ct.header import TAGS, Header, Refused
from mg3d.ledger import Reason

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def check_ct_series(headers: Sequence[Header]) -> None:
    """Raise Refused unless ``headers`` are one series of axial-or-oblique CT of one patient."""
    classes = {header.sop_class for header in headers}
    if classes & set(MULTI_FRAME_CT):
        raise Refused(Reason.MULTI_FRAME, "export as single-frame CT Image Storage")
    if any(name.startswith(SECONDARY_CAPTURE) for name in classes):
        raise Refused(Reason.SECONDARY, "secondary capture")
    if classes != {CT_IMAGE}:
        raise Refused(Reason.NOT_CT, ", ".join(sorted(classes - {CT_IMAGE})))
    if not all(header.complete for header in headers):
        count = sum(not header.complete for header in headers)
        raise Refused(Reason.TRUNCATED, f"{count} of {len(headers)} files")
    if any({"LOCALIZER", "SCOUT"} & set(header.image_type) for header in headers):
        raise Refused(Reason.LOCALIZER)
    if any("SECONDARY" in header.image_type[1:2] for header in headers):
        raise Refused(Reason.SECONDARY, "ImageType")
    if len({header.patient for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_PATIENTS, "PatientID differs within the series")
    if len({header.study for header in headers} - {None}) > 1:
        raise Refused(Reason.MIXED_STUDIES, "StudyInstanceUID differs within the series")
    for names, field in TAGS.items():
        if any(getattr(header, field) is None for header in headers):
            raise Refused(Reason.MISSING_TAG, names)
