"""The findings of a study, written by the task's decoder."""

from pathlib import Path

import torch

from mg3d.finetuning.diagnosis import Diagnosis
from mg3d.finetuning.fitted import Fitted
from mg3d.finetuning.report_writing import written_reports
from mg3d.finetuning.reporter import Reporter
from mg3d.inference.answer import Answer
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, task_encoder, windowed
from mg3d.params import CtrgReport
from mg3d.training.checkpoint import load_encoder


def written(folder: Path, fitted: Fitted) -> Built:
    """A report's text."""
    from tokenizers import Tokenizer

    encoder, contract = task_encoder(folder, fitted)
    params = fitted.params
    assert isinstance(params, CtrgReport)
    if params.mode == "scratch":
        raise ValueError(
            "a reporter from scratch is told what its encoder showed before training, which is "
            "not kept: register one of mode frozen or finetune"
        )
    tensors = {k: t for k, t in fitted.head.items() if not k.startswith("diagnosis.")}
    diagnosis = Diagnosis.from_tensors(
        fitted.head, fitted.facts["penalty"], fitted.facts["threshold"]
    )
    before, _, _ = load_encoder(folder)  # what the diagnosis was fitted to
    tokenizer = Tokenizer.from_str(fitted.facts["tokenizer"])
    blank = torch.zeros(2, *tensors["mean"].shape)
    reporter = Reporter(blank, tokenizer.get_vocab_size(), params, None).eval()
    reporter.load_state_dict(tensors)

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        volume = windowed(study, contract)
        pooled = before.tokens(volume).mean(1).double().numpy()
        tokens, findings = encoder.tokens(volume), diagnosis.findings(pooled)
        [report] = written_reports(reporter, tokens, findings, tokenizer, params)
        return Answer(study.study_id, report=report)

    return answer, contract
