"""The erratum, executable: MG-3D with the published code's errors (`objective.as_published`).

Each override is one error that changes the objective, and says where spec/model describes it. What
the losses do differently is in `mg3d.objectives.objective`. docs/method.md has the whole table, and
what is not reproduced. Shapes are those of `mg3d.models.mg3d`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mg3d.models.mg3d import MG3D, Inputs, Outputs
from mg3d.models.text import sentence_means
from mg3d.params import Model, Objective


class MG3DAsPublished(MG3D):
    """`MG3D` as the published code computes it; also what carries the weights of such a training.

    While it trains, the text encoder's dropout is active (spec/model 3, 6B.5): it stays frozen, but
    what enters as features or serves as a target is noisy, and the whole report, encoded twice in a
    step, is not equal to itself. `Inputs` that were encoded beforehand are therefore not used.

    Raises ValueError if the image tokens are not as wide as the text, which the double projection
    needs.
    """

    #: A mistyped task name sends MIM there (spec/model 4.3, 6B.2).
    mim_by_words = True

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__(model, objective)
        contrasts = (
            objective.cml_weight or objective.dfa_weight or objective.ssm_weight
            or objective.itc_weight
        )  # fmt: skip
        channels = self.image_projection.in_features
        if contrasts and channels != self.width:
            raise ValueError(
                f"objective.as_published projects image tokens twice by one map, but they have "
                f"{channels} channels and the text has {self.width}: set "
                "model.vision.token_projector to true, or choose an embed_dim of a sixteenth of "
                "the text's width"
            )
        self.max_tokens = model.text.max_tokens
        if objective.sfr_weight:
            self.sfr_target_head.requires_grad_(True)
        self.text_encoder.drops_in_training = True
        self.text_encoder.train()

    def forward(self, inputs: Inputs) -> Outputs:
        """Every report is padded to ``max_tokens`` (spec/model 1.2), as `_heeded` notices."""
        missing = max(0, self.max_tokens - inputs.input_ids.shape[1])
        pad_id = self.text_encoder.transformer.config.pad_token_id or 0

        def padded(rows: Tensor, value: int) -> Tensor:
            return F.pad(rows, (0, missing), value=value)

        return super().forward(
            Inputs(
                volume=inputs.volume,
                masked_volume=inputs.masked_volume,
                voxel_mask=inputs.voxel_mask,
                input_ids=padded(inputs.input_ids, pad_id),
                masked_ids=padded(inputs.masked_ids, pad_id),
                mlm_labels=padded(inputs.mlm_labels, -100),
                attention_mask=padded(inputs.attention_mask, 0),
                sentence_index=padded(inputs.sentence_index, -1),
                sentence_mask=inputs.sentence_mask,
            )
        )

    def _heeded(self, attention_mask: Tensor) -> Tensor:
        """All, pads too: the layers are given no mask (spec/model 4.1, 6B.6).

        So the shorter a report, the more its image tokens are scaled by what a pad has to say.
        """
        return torch.ones_like(attention_mask, dtype=torch.bool)

    def _contrast_tokens(self, image: Tensor) -> Tensor:
        """Projected and typed a second time: W_v Y + b_v + e₁ (spec/model 4.4, 6B.3).

        CML, DFA and SSM read other tokens than MLM and MIM, and W_v is trained to be applied once
        and twice. ITC, which is ours, shares their pool and so their tokens.
        """
        return self.image_projection(image) + self.image_type

    def _guided(self, image: Tensor, inputs: Inputs, sentences: Tensor, mask: Tensor) -> Tensor:
        """By the words of the whole report, pads too, through MLM's layers (spec/model 4.3, 6B.2).

        The layers meant for it are trained by CML and DFA only, and sentences guide nothing. The
        report is encoded once more, under another dropout; no gradient reaches the text (sg).
        """
        with torch.no_grad():
            words = self.text_encoder(inputs.input_ids, inputs.attention_mask)
            words = self.text_projection(words) + self.text_type
        guided, _ = self.mlm_fusion(image, words, self._heeded(inputs.attention_mask))
        return guided

    def _sfr_targets(self, inputs: Inputs, means: Tensor, mask: Tensor) -> Tensor:
        """Means of the embedding layer, through a head that learns (spec/model 4.2, 6B.4).

        The target knows no context, and can be made constant: the loss then is 0.
        """
        embedded = self.text_encoder.embedded(inputs.input_ids)
        return self.sfr_target_head(sentence_means(embedded, inputs.sentence_index, mask)[0])

    def _ssm_targets(self, inputs: Inputs, means: Tensor) -> Tensor:
        """Means of the embedding layer over [CLS], the clause and [SEP] (spec/model 4.7).

        The clause stands alone, at positions 0 to n + 1, and has no gradient. Its position in the
        clause changes what a word says, and dropout makes a clause unequal to itself. Words that
        were cut off at ``max_tokens`` are not there.
        """
        index, present = inputs.sentence_index, inputs.sentence_mask
        numbers = torch.arange(present.shape[1], device=index.device).expand_as(present)
        belongs = index[:, None] == numbers[:, :, None]  # [B, S, L]
        place = (belongs.cumsum(dim=2) * belongs).sum(dim=1)  # [B, L], from 1 in its own sentence
        length = belongs.sum(dim=2)  # [B, S]
        last = inputs.attention_mask.long().sum(dim=1, keepdim=True) - 1
        cls, sep = inputs.input_ids[:, :1], inputs.input_ids.gather(1, last)
        embedded = self.text_encoder.embedded(
            torch.cat([inputs.input_ids, cls.expand_as(numbers), sep.expand_as(numbers)], dim=1),
            torch.cat([place, torch.zeros_like(numbers), length + 1], dim=1),
        )
        index = torch.cat([index, numbers, numbers], dim=1)
        return sentence_means(embedded, index, present & (length > 0))[0]
