import json
from pathlib import Path

import numpy as np
import pytest

from mg3d.finetuning.report_generation import NULLS, SCORED, _derange, score
from mg3d.finetuning.report_scores import scored
from mg3d.params import CtrgReport

REFERENCES = ["A nodule. No effusion.", "Emphysema.", "The heart is normal."]
HYPOTHESES = ["A nodule. Pleural effusion.", "Emphysema.", "The heart is small."]


def rows(hypotheses: list[str]) -> list[dict[str, str]]:
    return [
        {"case_id": f"c{i}", "patient_id": f"p{i}", "reference": r, "hypothesis": h}
        for i, (r, h) in enumerate(zip(REFERENCES, hypotheses, strict=True))
    ]


def test_each_case_has_its_own_scores_and_findings() -> None:
    first, second, third = scored(rows(HYPOTHESES))
    assert first["reference_findings"] == ["nodule"]
    assert first["hypothesis_findings"] == ["pleural_effusion", "nodule"]
    assert first["keyword_f1"] == pytest.approx(2 / 3)
    assert second["bleu_1"] == second["rouge_l_f1"] == second["rouge_l_beta"] == 1
    assert second["bleu_4"] == 0  # two tokens have no four-gram: zero, not smoothed
    assert third["keyword_f1"] is None  # neither asserts a finding
    # "the heart is" of four words each; rouge-score knows no full stop, normaliser 1 does
    assert third["rouge_l_f1"] == pytest.approx(3 / 4)
    assert third["rouge_l_beta"] == pytest.approx(4 / 5)


def test_scores_come_from_the_files_alone_and_are_written_case_by_case(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    for system in ("model", *NULLS):
        hypotheses = HYPOTHESES if system == "model" else [HYPOTHESES[0]] * 3
        text = "".join(json.dumps(row) + "\n" for row in rows(hypotheses))
        (tmp_path / f"{system}.jsonl").write_text(text)
    scores = score(tmp_path, CtrgReport(num_bootstrap=100))
    values = {name: metric.value for name, metric in scores.metrics.items()}
    # Cells: nodule and emphysema right, the effusion invented.
    assert values["keyword_micro_precision"] == pytest.approx(2 / 3)
    assert values["keyword_micro_recall"] == 1
    assert values["keyword_micro_f1"] == pytest.approx(4 / 5)
    assert values["keyword_example_f1"] == pytest.approx((2 / 3 + 1) / 2)
    # Of the 18: the same cells; 54 cells with 2 positive: a hit earns 13, the false alarm costs 1.
    assert values["keyword_ct_rate_micro_f1"] == pytest.approx(4 / 5)
    assert values["keyword_ct_rate_macro_f1"] == 1  # the effusion is no label of these references
    assert values["keyword_ct_rate_crg"] == pytest.approx(26 / (52 - (2 * 13 - 1)))
    assert values["meteor"] is None
    assert set(scores.nulls) == set(NULLS)
    null = scores.nulls["text_only"]
    assert null["keyword_micro_recall"].value == pytest.approx(1 / 2)
    assert all(set(metrics) == set(scores.metrics) for metrics in scores.nulls.values())
    written = [json.loads(line) for line in (tmp_path / SCORED).read_text().splitlines()]
    assert written == scored(rows(HYPOTHESES))
    assert np.mean([row["cider_d"] for row in written]) == pytest.approx(values["cider_d"])


def test_everyone_gets_the_text_of_another() -> None:
    for size in range(2, 9):
        order = np.random.default_rng(size).permutation(size)
        shuffled = _derange(order)
        assert sorted(shuffled) == list(range(size))
        assert not (shuffled == np.arange(size)).any()
