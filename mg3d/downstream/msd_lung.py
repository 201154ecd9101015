"""Medical Segmentation Decathlon, Task06: outline the lung tumour on chest CT. (spec/downstream 9)

Official layout: ``Task06_Lung/dataset.json`` (training: pairs of ``./imagesTr/lung_001.nii.gz`` and
``./labelsTr/...``; test: images) with imagesTr, labelsTr, imagesTs. The masks of imagesTs are not
public, so test cases come from training: the ``val`` of the first fold of nnU-Net's
``splits_final.json`` if that lies beside dataset.json, otherwise drawn. One case is one patient.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from mg3d.data.identity import pseudonym
from mg3d.finetuning.mask_scores import Classes
from mg3d.finetuning.segmentation import Segmentation
from mg3d.finetuning.splits import NNUNET_FILE, nnunet_folds
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger, Reason

FOLDER, INDEX = "Task06_Lung", "dataset.json"
_ENDING = ".nii.gz"


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per pair that dataset.json lists, split by splits_final.json where it exists.

    Quarantined: macOS companions (``._*``), paths that leave the folder, a listed image or mask
    that is not there, a case that the split leaves out, images of the official test set. Raises
    ValueError without dataset.json, and for a split that names what does not exist.
    """
    root = data / FOLDER if (data / FOLDER).is_dir() else data
    if not (root / INDEX).is_file():
        raise ValueError(f"no {root / INDEX}: unpack Task06_Lung.tar under {data}")
    index: dict[str, Any] = json.loads((root / INDEX).read_text())
    listed_in = nnunet_folds(root)
    found = []
    for entry in index["training"]:
        image, mask = PurePosixPath(entry["image"]), PurePosixPath(entry["label"])
        name = image.name.removesuffix(_ENDING)
        case_id = pseudonym("case", name)
        ledger.declare(case_id)
        if any(path.is_absolute() or ".." in path.parts for path in (image, mask)):
            ledger.quarantine(case_id, Reason.UNSAFE_PATH, "leaves the data set's folder")
        elif name.startswith("._"):
            ledger.quarantine(case_id, Reason.STRAY_FILE, "macOS companion")
        elif not (root / image).is_file():
            ledger.quarantine(case_id, Reason.ORPHAN_MASK, "listed image is not there")
        elif not (root / mask).is_file():
            ledger.quarantine(case_id, Reason.ORPHAN_IMAGE, "listed mask is not there")
        elif listed_in is not None and name not in listed_in:
            ledger.quarantine(
                case_id, Reason.NOT_IN_SPLIT, f"not in the first fold of {NNUNET_FILE}"
            )
        else:
            patient_id = pseudonym("patient", name)
            part, number = listed_in[name] if listed_in else (None, None)
            split = {"train": "train", "val": "test", None: None}[part]
            found.append(
                Case(case_id, patient_id, root / image, mask=root / mask, split=split, fold=number)
            )
    listed = {
        PurePosixPath(entry["image"]).name.removesuffix(_ENDING) for entry in index["training"]
    }
    if unknown := sorted(set(listed_in or ()) - listed):
        raise ValueError(f"{NNUNET_FILE} names {unknown[0]}, which {INDEX} does not")
    for name in sorted(path.name for path in (root / "imagesTr").glob(f"._*{_ENDING}")):
        if name.removesuffix(_ENDING) not in listed:
            case_id = pseudonym("case", name.removesuffix(_ENDING))
            ledger.declare(case_id)
            ledger.quarantine(case_id, Reason.STRAY_FILE, "macOS companion")
    for name in sorted({PurePosixPath(image).name for image in index.get("test", [])}):
        case_id = pseudonym("case", f"imagesTs/{name}")
        ledger.declare(case_id)
        ledger.quarantine(case_id, Reason.NOT_IN_SPLIT, "no public mask")
    return found


TASK = DownstreamTask(
    name="msd_lung",
    version="1",
    kind=Segmentation(Classes(("tumour",), tolerance_mm=4.0, lesions=True)),
    cases=cases,
    headline=("dice",),
    citation="Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13:4128, "
    "2022",
    licence="CC BY-SA 4.0",
)
