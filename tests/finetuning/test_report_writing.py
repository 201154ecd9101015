import numpy as np
import torch

from mg3d.finetuning.report_writing import Corpus, closest, fit_language, fit_writer, stacked
from mg3d.finetuning.reporter import train_tokenizer
from mg3d.finetuning.task import Case
from mg3d.metrics.findings import FINDINGS, finding_matrix
from mg3d.params import CtrgReport

PARAMS = CtrgReport(
    num_layers=1, num_heads=2, width=32, num_beams=2, max_new_tokens=20, vocabulary_size=300,
    num_steps=100, batch_size=4, learning_rate=0.01,
)  # fmt: skip


def case(number: int, text: str) -> Case:
    return Case(f"c{number}", f"p{number}", None, text=text)  # type: ignore[arg-type]


def test_of_several_drafts_the_one_that_says_what_was_diagnosed() -> None:
    drafts = ["Clear lungs.", "A nodule. Emphysema.", "A nodule.", "Nodule."]
    (nodule,) = finding_matrix(["A nodule."])
    assert closest(drafts, nodule) == 2  # the first of equals
    assert closest(drafts, np.zeros(len(FINDINGS), int)) == 0


def test_the_image_decides_what_is_written() -> None:
    texts = ["A small nodule.", "Emphysema."]
    cases = [case(number, texts[number % 2]) for number in range(14)]
    train, validation, test = cases[:8], cases[8:10], cases[10:]
    corpus = Corpus(train, validation, train_tokenizer(texts * 4, 300), PARAMS)
    torch.manual_seed(0)
    tokens = {
        one.case_id: torch.randn(2, 4) * 0.2 + (1.0 if one.text == texts[0] else -1.0)
        for one in cases
    }
    blind = fit_language(corpus, "task/text_only", [one.case_id for one in test])
    assert len(set(blind.write(test))) == 1
    writer = fit_writer(
        corpus, tokens, stacked(tokens), None, lambda step, m: None, "task", blind.reporter
    )
    assert writer.write(test) == [one.text for one in test]
