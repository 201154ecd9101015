"""A case of a downstream data set, and cases by the part of the split they are in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mg3d.data.sources.study import Volume

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One record of a data set: paths, text and labels, nothing loaded.

    ``image`` is a .nii(.gz), a .mha, or a folder of JPG slices. ``labels`` are 0, 1, or None where
    a label does not apply. ``stratum`` keeps rare kinds of case in every split. ``scan_id`` is
    shared by the reconstructions of one scan. ``read`` gives HU and affine of an image that is not
    what its file says, and ``facts`` (text) are all that decides these beside the file. ``split``
    is where the data set puts the case, ``fold`` the number of its official fold, None where there
    is none. Ids are pseudonyms.
    """

    case_id: str
    patient_id: str
    image: Path
    labels: Mapping[str, int | None] = field(default_factory=dict)
    mask: Path | None = None
    text: str = ""
    scan_id: str = ""
    split: str | None = None
    stratum: str = ""
    read: Callable[[], Volume] | None = None
    fold: int | None = None
    facts: str = ""


Split = dict[str, list[Case]]
