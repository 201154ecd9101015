"""A mask as DICOM Segmentation (PS3.3 A.51), by highdicom, in the frame of the series it is of.

It carries the patient module of the source images, as a PACS needs it: it is for the owner of the
study, not for the record. Segments have SNOMED CT codes and are marked as made automatically.
"""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from mg3d import paths
from mg3d.data.ct.refused import Refused
from mg3d.ledger import Reason

if TYPE_CHECKING:
    from highdicom import Volume

MAX_SHEAR = 1e-3
SERIES_NUMBER = 9001
#: Segment -> SNOMED CT category and type; what is not here is a lesion.
LESION = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion)
CODES = {
    "tumour": (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm),
    "rv": (codes.SCT.AnatomicalStructure, codes.SCT.RightVentricle),
    "myocardium": (codes.SCT.AnatomicalStructure, codes.SCT.LeftVentricleMyocardium),
    "lv": (codes.SCT.AnatomicalStructure, codes.SCT.LeftVentricle),
}


def write_dicom_seg(
    path: Path,
    mask: np.ndarray,
    affine: np.ndarray,
    classes: Sequence[str],
    files: Sequence[Path],
    model: str,
) -> None:
    """Write class numbers ``mask`` (X, Y, Z) with ``affine`` (to RAS mm) for a series' ``files``.

    ``model`` names who segmented. Raises Refused where DICOM cannot say so: a sheared grid, or
    source images without a frame of reference.
    """
    import highdicom
    from highdicom.seg import Segmentation, SegmentDescription

    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > MAX_SHEAR:
        raise Refused(Reason.GANTRY_TILT, "a sheared grid has no DICOM geometry")
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    if not all(source.get("FrameOfReferenceUID") for source in sources):
        raise Refused(Reason.MISSING_TAG, "FrameOfReferenceUID")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model,
        version=version("mg3d"),
        family=codes.DCM.ArtificialIntelligence,
    )
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=CODES.get(name, LESION)[0],
            segmented_property_type=CODES.get(name, LESION)[1],
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes, 1)
    ]
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=as_volume(mask, affine, sources[0].FrameOfReferenceUID),
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="MG-3D",
        manufacturer_model_name=model,
        software_versions=version("mg3d"),
        device_serial_number="none",
        series_description="MG-3D segmentation, research use",
        omit_empty_frames=False,
    )
    with paths.atomic_write(path) as temporary:
        segmentation.save_as(temporary)


def as_volume(mask: np.ndarray, affine: np.ndarray, frame_of_reference: str) -> "Volume":
    """highdicom's volume of a mask (X, Y, Z) in RAS: slices from the feet up, rows from the front,
    columns from the patient's right, as an axial series has them."""
    from highdicom import Volume

    flipped = mask[::-1, ::-1]
    to_flipped = np.diag([-1.0, -1.0, 1.0, 1.0])
    to_flipped[:2, 3] = np.array(mask.shape[:2]) - 1
    of_flipped = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ to_flipped  # RAS to LPS on the left
    return Volume(
        np.ascontiguousarray(flipped.transpose(2, 1, 0)),
        of_flipped[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference,
    )
