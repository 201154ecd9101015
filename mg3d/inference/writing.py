"""An answer as files: one folder per study, named by its pseudonym.

``answer.json`` is all of it; ``findings.csv``, ``mask.nii.gz``, ``mask.dcm``, ``report.txt`` and
``nearest.csv`` are there where the task has them; ``figure.png`` always.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from mg3d import paths
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.ct.refused import Refused
from mg3d.figures.prediction import prediction
from mg3d.finetuning.network_grid import to_file_order
from mg3d.inference.answer import Answer
from mg3d.inference.dicom_seg import write_dicom_seg
from mg3d.inference.study import Study


def write_answer(out: Path, study: Study, answer: Answer, model: dict[str, Any]) -> Path:
    """Write all files of an answer into ``out/<study id>``; returns ``answer.json``.

    ``model`` says who answered. A mask is on the voxels of the study's own file; of a DICOM series
    also a DICOM-SEG, or the reason in ``answer.json`` why there is none.
    """
    folder = out / study.study_id
    about = {"model": model, **answer.as_json()}
    if answer.findings:
        rows = [(f.name, f"{f.probability:.6f}", f.threshold, f.called) for f in answer.findings]
        _csv(folder / "findings.csv", ("finding", "probability", "threshold", "called"), rows)
    if answer.mask is not None:
        mask, affine = answer.mask, study.affine
        if study.stored_affine is not None:
            mask, affine = to_file_order(mask, study.stored_affine), study.stored_affine
        write_nifti(mask, affine, folder / "mask.nii.gz")
        about["dicom_seg"] = _dicom_seg(folder, study, answer, model["uri"])
    if answer.report is not None:
        with paths.atomic_write(folder / "report.txt") as temporary:
            temporary.write_text(answer.report + "\n")
    if answer.nearest:
        nearest = [(case_id, f"{value:.6f}") for case_id, value in answer.nearest]
        _csv(folder / "nearest.csv", ("case_id", "similarity"), nearest)
    figure = _figure(study, answer, f"{model['uri']}, {study.study_id}")
    with paths.atomic_write(folder / "figure.png") as temporary:
        figure.savefig(temporary, dpi=110)
    with paths.atomic_write(folder / "answer.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n")
    return folder / "answer.json"


def _dicom_seg(folder: Path, study: Study, answer: Answer, model: str) -> str:
    if not study.files:
        return "none: the study is no DICOM series"
    assert answer.mask is not None
    path = folder / "mask.dcm"
    try:
        write_dicom_seg(path, answer.mask, study.affine, answer.classes, study.files, model)
    except Refused as refused:
        return f"none: {refused}"
    return path.name


def _csv(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with paths.atomic_write(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _figure(study: Study, answer: Answer, title: str) -> Any:
    volume, mask = study.volume, answer.mask
    at = [size // 2 for size in volume.shape]
    if mask is not None and mask.any():  # where there is most of it
        inside = mask > 0
        at = [int(inside.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    lines = [answer.report] if answer.report else []
    lines += [f"{case_id}  {value:.3f}" for case_id, value in answer.nearest]
    lines += [f"{name}: {value:.1f} ml" for name, value in answer.volumes_ml.items()]
    return prediction(
        {name: _grey(plane) for name, plane in _planes(volume, at).items()},
        None if mask is None else _planes(mask, at),
        [(f.name, f.probability, f.threshold) for f in answer.findings],
        lines,
        title,
    )


def _planes(volume: np.ndarray, at: list[int]) -> dict[str, np.ndarray]:
    """Through ``at`` of (X, Y, Z) in RAS, the head or the front up, the patient's right left."""
    x, y, z = at
    return {
        "axial": volume[::-1, ::-1, z].T,
        "coronal": volume[::-1, y, ::-1].T,
        "sagittal": volume[x, ::-1, ::-1].T,
    }


def _grey(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, [1, 99])
    return np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
