"""The findings of a study, written by the task's decoder."""

from pathlib import Path

import torch

from mg3d.finetuning.fitted import Fitted
from mg3d.finetuning.reporter import Reporter
from mg3d.inference.answer import Answer
from mg3d.inference.study import Study
from mg3d.inference.towers import Built, task_encoder, windowed
from mg3d.params import CtrgReport


def written(folder: Path, fitted: Fitted) -> Built:
    """A report's text."""
    from tokenizers import Tokenizer

    encoder, contract = task_encoder(folder, fitted)
    params, tensors = fitted.params, fitted.head
    assert isinstance(params, CtrgReport)
    tokenizer = Tokenizer.from_str(fitted.facts["tokenizer"])
    blank = torch.zeros(2, *tensors["mean"].shape)
    reporter = Reporter(blank, tokenizer.get_vocab_size(), params, None).eval()
    reporter.load_state_dict(tensors)

    @torch.inference_mode()
    def answer(study: Study) -> Answer:
        tokens = encoder.tokens(windowed(study, contract))
        ids = reporter.generate(tokens, params.num_beams, params.max_new_tokens)
        return Answer(study.study_id, report=tokenizer.decode(ids[0].tolist()).strip())

    return answer, contract
