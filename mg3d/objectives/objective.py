"""The total loss: weights × terms (spec/model 4)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mg3d.objectives.cml import cml_loss
from mg3d.objectives.contrastive import Gather, one_rank
from mg3d.objectives.dfa import dfa_loss
from mg3d.objectives.itc import itc_loss
from mg3d.objectives.mim import mim_loss, mim_loss_as_published
from mg3d.objectives.mlm import mlm_loss
from mg3d.objectives.sfr import sfr_loss
from mg3d.objectives.ssm import ssm_loss

if TYPE_CHECKING:
    from mg3d.params import Objective


def objective(
    outputs: Any,
    inputs: Any,
    params: "Objective",
    gather: Gather = one_rank,
    gather_own_gradient: Gather = one_rank,
) -> dict[str, Tensor]:
    """L = mlm + 0.1 sfr + mim + 0.1 (cml + dfa + ssm), with the weights of ``params``.

    The mean of the ranks' values is that of the global batch, however the ranks share it.
    ``outputs`` and ``inputs`` are `mg3d.models.mg3d`'s dataclasses. Returns one unweighted scalar
    for each term with a weight, and ``"total"``, the weighted sum.

    With ``params.as_published`` as the published code computes them (spec/model 4, 5): means and
    SSM's pairs are of this rank alone; the rows of CML and DFA meet by ``gather_own_gradient``,
    whose gradient is 1/W of the exact one after DDP's mean; SFR's target learns; MIM divides by
    0.5, whatever is masked. ITC, which is ours, stays exact.
    """
    published = params.as_published
    exact, own = gather, gather_own_gradient
    gather = one_rank if published else exact
    losses: dict[str, Tensor] = {}
    if params.mlm_weight:
        losses["mlm"] = mlm_loss(outputs.mlm_logits, inputs.mlm_labels, gather)
    if params.sfr_weight:
        losses["sfr"] = sfr_loss(
            outputs.sfr_prediction,
            outputs.sfr_target,
            outputs.sentence_mask,
            params.sfr_reduction,
            gather,
            target_learns=published,
        )
    if params.mim_weight:
        volumes = (outputs.reconstruction, inputs.volume, inputs.voxel_mask)
        losses["mim"] = mim_loss_as_published(*volumes) if published else mim_loss(*volumes, gather)
    contrast = (params.temperature, own if published else exact, params.contrastive_chunk)
    if params.cml_weight:
        losses["cml"] = cml_loss(outputs.cml_fused, outputs.cml_unimodal, *contrast)
    if params.dfa_weight:
        losses["dfa"] = dfa_loss(outputs.dfa_image, outputs.dfa_text, *contrast)
    if params.ssm_weight:
        losses["ssm"] = ssm_loss(
            outputs.ssm_visual,
            outputs.ssm_text,
            outputs.sentence_mask,
            params.ssm_similar_from,
            params.ssm_dissimilar_to,
            gather,
            params.contrastive_chunk,
        )
    if params.itc_weight:
        contrast = (params.temperature, exact, params.contrastive_chunk)
        losses["itc"] = itc_loss(outputs.itc_image, outputs.itc_text, *contrast)
    weighted = [getattr(params, f"{term}_weight") * loss for term, loss in losses.items()]
    losses["total"] = torch.stack(weighted).sum()
    return losses
