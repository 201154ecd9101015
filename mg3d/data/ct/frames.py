"""Frames of an enhanced multi-frame CT: geometry and rescale of each (PS3.3 A.38, C.7.6.16).

A macro stands in the frame's own functional groups, or in the shared ones for all frames.
"""

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset

# Macro -> the attributes that become those of a single-frame slice.
MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameContentSequence": ("FrameAcquisitionNumber", "FrameReferenceDateTime"),
    "CTImageFrameTypeSequence": ("FrameType",),
}
GROUPS: list[Any] = ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]


def frames_of(data: Dataset) -> Iterator[Dataset]:
    """One flat data set per frame, in stored order; none if there are no functional groups."""
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    for own in data.get("PerFrameFunctionalGroupsSequence") or []:
        frame = Dataset()
        for group in (*shared, own):  # the frame's own comes last and wins
            for macro, names in MACROS.items():
                for item in (group.get(macro) or [])[:1]:
                    for name in names:
                        if name in item:
                            setattr(frame, name, item[name].value)
        yield frame
