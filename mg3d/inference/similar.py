"""The cases of the task's gallery whose images are nearest to a study's."""

from pathlib import Path

import torch
import torch.nn.functional as F

from mg3d.finetuning.fitted import Fitted
from mg3d.inference.answer import Answer
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, windowed
from mg3d.training.checkpoint import load_model

NUM_NEAREST = 5


def cases(folder: Path, fitted: Fitted) -> Built:
    """Case ids (pseudonyms) by cosine; the gallery is what the task was evaluated on."""
    loaded = load_model(folder)
    tuned = {k: t for k, t in fitted.tensors.items() if k.startswith("model.")}
    if tuned:  # all but the frozen text encoder
        loaded.model.load_state_dict(
            {k.removeprefix("model."): t for k, t in tuned.items()}, strict=False
        )
    gallery, case_ids = fitted.tensors["gallery"], fitted.facts["case_ids"]
    projection = fitted.tensors.get("image.weight")

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        image = loaded.model.encode_image(windowed(study, loaded.contract))
        if projection is not None:
            image = F.normalize(image @ projection.T, dim=-1)
        similarity = (gallery @ image[0]).tolist()
        order = sorted(range(len(case_ids)), key=lambda row: -similarity[row])[:NUM_NEAREST]
        return Answer(
            study.study_id, nearest=tuple((case_ids[row], similarity[row]) for row in order)
        )

    return answer, loaded.contract
