"""How well the pre-trained model does on studies that it does not train on.

The masks depend on the study's place only, so that every validation asks the same questions.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from mg3d.metrics import retrieval
from mg3d.objectives.mim import mim_loss
from mg3d.objectives.mlm import IGNORED, mlm_loss
from mg3d.training.distributed import gather

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D, Inputs


@torch.no_grad()
def evaluate(model: "MG3D", batches: Iterable["Inputs"]) -> tuple[dict[str, float], np.ndarray]:
    """Scores over the batches of all ranks, and the similarity [V, V] of volumes and reports.

    ``mlm`` and ``mlm_accuracy`` are means over all masked tokens, ``mim`` over all masked voxels.
    With a dual encoder also recall at 1 and 5 and the median rank of the matching item, both ways,
    by cosine similarity in a gallery of all V studies. Without one the similarity is [0, 0].
    """
    weights, device = model.objective, next(model.parameters()).device
    sums = torch.zeros(5, dtype=torch.double, device=device)  # words: n, loss, right; voxels: n, l
    images, texts = [torch.zeros(0, model.width)], [torch.zeros(0, model.width)]
    for inputs in batches:
        outputs = model(inputs)
        if outputs.mlm_logits is not None:
            labels = inputs.mlm_labels[inputs.mlm_labels != IGNORED]
            num_words = len(labels)
            loss = mlm_loss(outputs.mlm_logits, inputs.mlm_labels).double()
            right = (outputs.mlm_logits.argmax(-1) == labels).sum()
            sums[:3] += torch.stack([loss.new_tensor(num_words), loss * num_words, right.double()])
        if outputs.reconstruction is not None:
            num_voxels = inputs.voxel_mask.sum().double()
            error = mim_loss(outputs.reconstruction, inputs.volume, inputs.voxel_mask)
            sums[3:] += torch.stack([num_voxels, error * num_voxels])
        if outputs.itc_image is not None and outputs.itc_text is not None:
            # what encode_image and encode_text return, without a second pass
            images.append(F.normalize(outputs.itc_image.float(), dim=-1, eps=1e-6).cpu())
            texts.append(F.normalize(outputs.itc_text.float(), dim=-1, eps=1e-6).cpu())

    num_words, mlm, right, num_voxels, mim = gather(sums[None]).sum(0).tolist()
    scores: dict[str, float] = {}
    if weights.mlm_weight and num_words:
        scores |= {"mlm": mlm / num_words, "mlm_accuracy": right / num_words}
    if weights.mim_weight and num_voxels:
        scores["mim"] = mim / num_voxels
    image, text = (gather(torch.cat(rows).to(device)).cpu().numpy() for rows in (images, texts))
    similarity = image @ text.T  # in numpy, where autocast cannot round it
    if len(similarity):
        scores |= retrieval_scores(similarity)
    return scores, similarity


def retrieval_scores(similarity: np.ndarray) -> dict[str, float]:
    """Recall at 1 and 5 and median rank from volumes to reports and back; matches are i = j."""
    scores = {}
    matches = np.eye(len(similarity), dtype=bool)
    for way, ordered in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        rank = retrieval.ranks(ordered, matches)
        scores[f"{way}_recall_at_1"] = retrieval.recall_at(rank, 1)
        scores[f"{way}_recall_at_5"] = retrieval.recall_at(rank, 5)
        scores[f"{way}_median_rank"] = retrieval.median_rank(rank)
    return scores
