"""How well the pre-trained model does on studies that it does not train on.

The masks depend on the study's place only, so that every validation asks the same questions.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.metrics import embedding, retrieval
from mg3d.objectives.cml import cml_loss
from mg3d.objectives.mim import mim_loss
from mg3d.objectives.mlm import IGNORED, mlm_loss
from mg3d.training.distributed import gather, is_main

if TYPE_CHECKING:
    from mg3d.models.mg3d import MG3D, Inputs, Outputs
    from mg3d.params import Objective

DUAL = ("image", "text")
#: CML's two sides, whole and with the half of the other modality set to zero.
CML = {"cml": "", "cml_image_only": "_image_only", "cml_text_only": "_text_only"}
TOP_DIMENSIONS = 5


@torch.no_grad()
def evaluate(model: "MG3D", batches: Iterable["Inputs"]) -> tuple[dict[str, float], np.ndarray]:
    """Scores over the batches of all ranks, and the similarity [V, V] of volumes and reports.

    - ``mlm`` and ``mlm_accuracy`` are means over all masked tokens, ``mim`` over all masked voxels.
    - With a dual encoder: recall at 1 and 5 and median rank, by cosine similarity in a gallery of
      all V studies, from an image alone to a text alone and back. Without one the similarity is
      [0, 0].
    - With CML: the loss and recall at 1 from the fused to the uni-modal side as it is trained
      (``cml_...``), and with one modality set to zero on both sides (``cml_image_only_...``,
      ``cml_text_only_...``). Both sides hold the same pair: if one modality alone does as well as
      both and the other does not, CML is solved without looking at the other.
    - Of the embeddings of each modality (dual encoder's, or else CML's uni-modal side with the
      other half zero): what `mg3d.metrics.embedding` measures, and ``collapsed``, 1 if those of any
      modality meet its rule, which is also said on stderr.

    What cannot be measured on so few studies is absent.
    """
    weights, device = model.objective, next(model.parameters()).device
    sums = torch.zeros(5, dtype=torch.double, device=device)  # words: n, loss, right; voxels: n, l
    rows: dict[str, list[Tensor]] = {
        name: [torch.zeros(0, model.width)] for name in _names(weights)
    }
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
        for name, x in _embeddings(model, outputs).items():
            rows[name].append(F.normalize(x.float(), dim=-1, eps=1e-6).cpu())

    num_words, mlm, right, num_voxels, mim = gather(sums[None]).sum(0).tolist()
    found = {k: gather(torch.cat(parts).to(device)).cpu().numpy() for k, parts in rows.items()}
    num_studies = max(map(len, found.values()), default=0)
    scores: dict[str, float] = {}
    if weights.mlm_weight and num_words:
        scores |= {"mlm": mlm / num_words, "mlm_accuracy": right / num_words}
    if weights.mim_weight and num_voxels:
        scores["mim"] = mim / num_voxels
    similarity = np.zeros((0, 0))
    if weights.itc_weight and num_studies:
        image, text = (found[name] for name in DUAL)
        similarity = image @ text.T  # in numpy, where autocast cannot round it
        scores |= retrieval_scores(similarity)
        scores["alignment"] = embedding.alignment(image, text)
        scores["modality_gap"] = embedding.modality_gap(image, text)
    if weights.cml_weight and num_studies:
        scores |= shortcut_scores(found, weights.temperature)
    if num_studies:
        scores |= geometry_scores(found)
    return {name: score for name, score in scores.items() if math.isfinite(score)}, similarity


def _names(weights: "Objective") -> list[str]:
    """The keys of :func:`_embeddings`, also for a rank without studies."""
    cml = [f"{side}{end}" for side in ("fused", "unimodal") for end in CML.values()]
    return [*(DUAL if weights.itc_weight else ()), *(cml if weights.cml_weight else ())]


def _embeddings(model: "MG3D", outputs: "Outputs") -> dict[str, Tensor]:
    """What the contrastive terms compare, without a second pass, each [B, E]."""
    found: dict[str, Tensor] = {}
    if outputs.itc_image is not None and outputs.itc_text is not None:
        found |= {"image": outputs.itc_image, "text": outputs.itc_text}
    if outputs.cml_fused_globals is not None and outputs.cml_unimodal_globals is not None:
        for side, head, both in (
            ("fused", model.cml_fused_head, outputs.cml_fused_globals),
            ("unimodal", model.cml_unimodal_head, outputs.cml_unimodal_globals),
        ):
            text, image = both.chunk(2, dim=-1)
            nothing = torch.zeros_like(text)
            found[side] = head(both)
            found[f"{side}_image_only"] = head(torch.cat([nothing, image], dim=-1))
            found[f"{side}_text_only"] = head(torch.cat([text, nothing], dim=-1))
    return found


def shortcut_scores(found: Mapping[str, np.ndarray], temperature: float) -> dict[str, float]:
    """Recall at 1 and loss of CML, whole and of one modality; embeddings [V, E] as `evaluate` has.

    "Image only" is no retrieval across modalities, and the fused image has met its own sentences.
    """
    scores = {}
    for name, end in CML.items():
        fused, unimodal = found[f"fused{end}"], found[f"unimodal{end}"]
        rank = retrieval.ranks(fused @ unimodal.T, np.eye(len(fused), dtype=bool))
        scores[f"{name}_recall_at_1"] = retrieval.recall_at(rank, 1)
        loss = cml_loss(torch.from_numpy(fused), torch.from_numpy(unimodal), temperature)
        scores[f"{name}_loss"] = float(loss)
    return scores


def geometry_scores(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Rank, variance, cosine and uniformity of each modality's embeddings [V, E]; ``collapsed``."""
    scores: dict[str, float] = {"collapsed": 0.0}
    for modality in DUAL:
        x = found.get(modality, found.get(f"unimodal_{modality}_only"))
        if x is None:
            return {}
        rank, cosine = embedding.effective_rank(x), embedding.mean_cosine(x)
        scores[f"{modality}_effective_rank"] = rank
        scores[f"{modality}_top{TOP_DIMENSIONS}_variance_fraction"] = (
            embedding.top_variance_fraction(x, TOP_DIMENSIONS)
        )
        scores[f"{modality}_mean_cosine"] = cosine
        scores[f"{modality}_uniformity"] = embedding.uniformity(x)
        if embedding.collapsed(x):
            scores["collapsed"] = 1.0
            if is_main():
                print(
                    f"validation: the {modality} embeddings of {len(x)} studies have collapsed: "
                    f"effective rank {rank:.2f} (under {embedding.MIN_EFFECTIVE_RANK:g}) or mean "
                    f"cosine {cosine:.4f} (over {embedding.MAX_MEAN_COSINE:g})",
                    file=sys.stderr,
                )
    return scores


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
