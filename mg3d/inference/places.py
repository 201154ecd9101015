"""Is each of these places a lesion? The places come with the study: candidates in LPS mm."""

from pathlib import Path

import numpy as np
import torch

from mg3d.data.volumes import apply_window
from mg3d.finetuning.candidates import EMBED_BATCH
from mg3d.finetuning.cubes import IsotropicScan
from mg3d.finetuning.fitted import Fitted
from mg3d.inference.answer import Answer, Finding
from mg3d.inference.labels import head_of
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, task_encoder
from mg3d.params import CandidateFinetune


def candidates(folder: Path, fitted: Fitted) -> Built:
    """A probability for each place, named by its millimetres."""
    encoder, contract = task_encoder(folder, fitted)
    head, params = head_of(fitted), fitted.params
    assert isinstance(params, CandidateFinetune)

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        if study.places is None or not len(study.places):
            raise ValueError(
                f"{fitted.task} judges places and was given none: pass --candidates FILE, a CSV "
                "with the columns coordX, coordY, coordZ (LPS mm)"
            )
        scan = IsotropicScan(study.volume, study.affine, params)
        found = []
        for start in range(0, len(study.places), EMBED_BATCH):
            places = study.places[start : start + EMBED_BATCH]
            cubes = np.stack([scan.cube(place.tolist()) for place in places])
            volume = torch.from_numpy(apply_window(cubes, params.cube_window_hu)[:, None])
            probability = head.logits(encoder.features(volume))[:, 0].sigmoid()
            for place, value in zip(places, probability, strict=True):
                x, y, z = (f"{coordinate:.1f}" for coordinate in place)
                found.append(Finding(f"lesion at {x} {y} {z}", float(value)))
        return Answer(study.study_id, findings=tuple(found))

    return answer, contract
