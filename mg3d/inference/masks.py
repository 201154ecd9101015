"""A mask on the study's own grid, window by window."""

from pathlib import Path

import numpy as np

from mg3d.finetuning.fitted import ENCODER, Fitted
from mg3d.finetuning.network_grid import network_grid
from mg3d.finetuning.segmentation import network_input
from mg3d.finetuning.unetr import UNETR, window_by_window
from mg3d.inference.answer import Answer
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, task_encoder
from mg3d.params import SegmentationTask


def segmented(folder: Path, fitted: Fitted) -> Built:
    """Class numbers on the voxels of the study, and the volume of each class."""
    encoder, contract = task_encoder(folder, fitted)
    params, names = fitted.params, tuple(fitted.facts["labels"])
    assert isinstance(params, SegmentationTask)
    network = UNETR(encoder, False, len(names)).eval()
    own = {k: t for k, t in network.state_dict().items() if k.startswith(ENCODER)}
    network.load_state_dict({**own, **fitted.head})
    spacing_mm = tuple(fitted.facts["spacing_mm"])

    def answer(study: Study) -> Answer:
        grid = network_grid(study.volume.shape, study.affine, spacing_mm)
        volume = network_input(study.volume, grid, params.window_hu)
        mask = grid.classes_to_image(window_by_window(network, volume, params))
        voxel_ml = abs(np.linalg.det(study.affine[:3, :3])) / 1000
        count = np.bincount(mask.ravel(), minlength=1 + len(names))
        volumes_ml = {name: float(count[n] * voxel_ml) for n, name in enumerate(names, 1)}
        return Answer(study.study_id, mask=mask, classes=names, volumes_ml=volumes_ml)

    return answer, contract
