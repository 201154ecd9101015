"""COVID-19-20: outline COVID lesions on non-contrast chest CT. (spec/downstream 8)

Official layout: ``Train/volume-covid19-A-0003_ct.nii.gz`` with ``..._seg.nii.gz``; ids are not
contiguous and some carry a series suffix (``A-0047_1``). ``Validation/`` has no public masks: it is
scored online only and counted here as not in the split. Test is one of the reference's five
folds, blocks of consecutive ids, the first by default (3 to 165 of 3 to 698): comparable, though
what drifts with the id drifts with the fold.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from mg3d.data.identity import pseudonym
from mg3d.finetuning.mask_scores import Classes
from mg3d.finetuning.segmentation import Segmentation
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

_IMAGE, _MASK = "_ct.nii.gz", "_seg.nii.gz"
_SERIES = re.compile(r"^(volume-covid19-A-(\d+))(?:_\d+)?$")
_NUM_FOLDS = 5


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """Pairs of image and mask with exactly the same stem; a patient is the stem without series.

    Quarantined: an image without mask, a mask without image, macOS companions (``._*``),
    everything under Validation.
    Raises ValueError without the folder Train.
    """
    train = data / "Train"
    if not train.is_dir():
        raise ValueError(f"no folder {train}: COVID-19-20 ships Train and Validation")
    images = _by_stem(train, _IMAGE)
    masks = _by_stem(train, _MASK)
    folds = blocks(stem for stem in images if stem in masks and not stem.startswith("._"))
    found = []
    for stem in sorted(images.keys() | masks.keys()):
        case_id = pseudonym("case", stem)
        ledger.declare(case_id)
        if stem.startswith("._"):
            ledger.quarantine(case_id, Reason.STRAY_FILE, "macOS companion")
        elif stem not in images:
            ledger.quarantine(case_id, Reason.ORPHAN_MASK, "mask without image")
        elif stem not in masks:
            ledger.quarantine(case_id, Reason.ORPHAN_IMAGE, "image without mask")
        else:
            fold = folds[patient_of(stem)]
            found.append(
                Case(
                    case_id=case_id,
                    patient_id=pseudonym("patient", patient_of(stem)),
                    image=images[stem],
                    mask=masks[stem],
                    split="train" if fold else "test",
                    fold=fold,
                )
            )
    for stem in sorted(_by_stem(data / "Validation", _IMAGE)):
        case_id = pseudonym("case", f"Validation/{stem}")
        ledger.declare(case_id)
        ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, "no public mask")
    return found


def patient_of(stem: str) -> str:
    """The stem without its series suffix."""
    series = _SERIES.match(stem)
    return series.group(1) if series else stem


def blocks(stems: Iterable[str]) -> dict[str, int]:
    """Fold by patient: fifths in the order of the patients' numbers, the first ones larger by one
    where it does not go up."""

    def number(patient: str) -> tuple[int, str]:
        series = _SERIES.match(patient)
        return (int(series.group(2)) if series else 0), patient

    patients = sorted({patient_of(stem) for stem in stems}, key=number)
    size, larger = divmod(len(patients), _NUM_FOLDS)
    sizes = [size + (fold < larger) for fold in range(_NUM_FOLDS)]
    folds = [fold for fold, count in enumerate(sizes) for _ in range(count)]
    return dict(zip(patients, folds, strict=True))


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}


TASK = DownstreamTask(
    name="covid19_20",
    version="2",
    kind=Segmentation(Classes(("lesion",), tolerance_mm=2.0)),
    cases=cases,
    headline=("dice",),
    citation="Roth et al., Rapid artificial intelligence solutions in a pandemic: the COVID-19-20 "
    "Lung CT Lesion Segmentation Challenge, Medical Image Analysis 82:102605, 2022",
    licence="believed CC BY 4.0 (TCIA, CT Images in COVID-19): verify",
)
