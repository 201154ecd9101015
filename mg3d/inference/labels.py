"""Findings with probabilities, by a linear probe or by prompts."""

from pathlib import Path

import torch

from mg3d.finetuning.fitted import Fitted
from mg3d.finetuning.probe import Classifier
from mg3d.finetuning.prompting import Prompted
from mg3d.inference.answer import Answer, Finding
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, task_encoder, windowed
from mg3d.params import VolumeContract
from mg3d.training.checkpoint import load_model


def head_of(fitted: Fitted) -> Classifier:
    """The linear head on features [B, C]."""
    tensors = fitted.head
    num_outputs, channels = tensors["head.weight"].shape
    head = Classifier(torch.zeros(2, channels), num_outputs, None)
    head.load_state_dict(tensors)
    return head.eval()


def probed(folder: Path, fitted: Fitted) -> Built:
    """A probability for each label, or, of several classes, their softmax."""
    encoder, contract = task_encoder(folder, fitted)
    head = head_of(fitted)

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        logits = head.logits(encoder.features(windowed(study, contract)))[0]
        of_classes = fitted.kind == "multiclass"
        probability = logits.softmax(-1) if of_classes else logits.sigmoid()
        return Answer(study.study_id, findings=_findings(fitted, probability))

    return answer, contract


def prompted(folder: Path, fitted: Fitted) -> Built:
    """What the dual encoder says to each label's two prompts."""
    loaded = load_model(folder)
    tensors = fitted.head
    temperature = loaded.objective_params.temperature
    head = Prompted(tensors["text"], temperature, torch.nn.functional.mse_loss)
    head.load_state_dict(tensors)
    contract: VolumeContract = loaded.contract

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        image = loaded.model.encode_image(windowed(study, contract))
        return Answer(study.study_id, findings=_findings(fitted, head.logits(image)[0].sigmoid()))

    return answer, contract


def _findings(fitted: Fitted, probability: torch.Tensor) -> tuple[Finding, ...]:
    thresholds = fitted.facts.get("thresholds", {})
    return tuple(
        Finding(name, float(value), thresholds.get(name))
        for name, value in zip(fitted.facts["labels"], probability, strict=True)
    )
