import json
from pathlib import Path

import numpy as np
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.ct_rate_retrieval import cases
from mg3d.finetuning.images import read_case
from mg3d.finetuning.task import Case, evaluate, score
from mg3d.ledger import Ledger, Reason
from mg3d.params import CtRateRetrieval, VolumeContract

from .layouts import chest_hu, write_ct_rate, write_ct_rate_raw, write_nifti

TASK = DOWNSTREAM["ct_rate_retrieval"]


def test_cases_of_fixed_volumes(tmp_path: Path) -> None:
    write_ct_rate(tmp_path)
    ledger = Ledger("ct_rate_retrieval", "case")
    found = cases(tmp_path, ledger)
    assert sorted(str(e.reason) for e in ledger.entries) == sorted(
        [Reason.NOT_CHOSEN, Reason.REPORT_NOT_GIVEN, Reason.STUDY_WITHOUT_REPORT]
    )
    valid = [case for case in found if case.split == "test"]
    assert len(valid) == 8
    assert len({case.scan_id for case in valid}) == 6
    assert sum(case.split == "train" for case in found) == 6
    one = next(case for case in found if case.image.name == "valid_1_a_2.nii.gz")
    assert one.text == "Pleural effusion. Case 1."  # "Not given." is no text
    assert one.labels["Pleural effusion"] == 1
    assert one.read is None  # as the file says


def test_raw_and_fixed_files_give_the_same_volume(tmp_path: Path, contract: VolumeContract) -> None:
    volume, spacing_mm = chest_hu(), (9.0, 9.0, 14.0)
    volume[: len(volume) // 3] += 90  # one side is not the other
    volume[:, : volume.shape[1] // 3] += 60
    write_ct_rate_raw(tmp_path, volume, spacing_mm)
    ledger = Ledger("ct_rate_retrieval", "case")
    (raw,) = cases(tmp_path, ledger)
    assert [(e.reason, e.detail) for e in ledger.entries] == [
        (Reason.MISSING_TAG, "no rescale or spacing in metadata")
    ]
    write_nifti(tmp_path / "fixed.nii.gz", volume, spacing_mm)
    fixed = Case("case-fixed", "patient", tmp_path / "fixed.nii.gz")
    tensors = [read_case(case, contract, ledger) for case in (raw, fixed)]
    assert tensors[0] is not None
    assert tensors[1] is not None
    assert np.array_equal(tensors[0], tensors[1])
    assert not np.array_equal(tensors[1], tensors[1][:, ::-1, ::-1])


def test_wrong_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="everything under dataset/"):
        cases(tmp_path, Ledger("ct_rate_retrieval", "case"))


@pytest.mark.parametrize("mode", ["zero_shot", "frozen", "finetune"])
def test_end_to_end(tmp_path: Path, checkpoint: Path, mode: str) -> None:
    write_ct_rate(tmp_path / "data")
    params = CtRateRetrieval(mode=mode, num_steps=3, batch_size=4, num_bootstrap=100)
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, params, lambda step, m: None)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["counts"]["gallery"] == 6
    assert result["counts"]["reconstructions"] == 8
    assert result["headline"]["name"] == "recall_at_5"
    assert result["headline"]["null"]["chance"] == pytest.approx(5 / 6)
    assert set(result["headline"]["null"]) == {"chance", "shuffled_pairs", "random_encoder"}
    left_out = result["ledger"]["reasons"].get("not_in_split", 0)
    assert left_out == (6 if mode == "zero_shot" else 0)
    assert {path.stem for path in (out / "figures").iterdir()} == {
        "contact_sheet", "contact_sheet_volumes", "similarity",
    }  # fmt: skip
    assert result["notes"][0].startswith("gallery of 6 scans")

    # Hand-made embeddings with a known ranking: report i is nearest to volume i but for the last.
    order = np.eye(6, dtype=np.float32)
    table = (out / "predictions" / "cases.csv").read_text()
    assert table.count("True") == 6
    scans = [line.split(",")[2] for line in table.splitlines()[1:]]
    first = list(dict.fromkeys(scans))
    image = order[[first.index(scan) for scan in scans]]
    primary = [line.split(",")[3] == "True" for line in table.splitlines()[1:]]
    text = image[primary].copy()
    text[-1] = text[0]
    np.savez(out / "predictions" / "model.npz", image=image, text=text)
    metrics = score(TASK, out, params)["metrics"]
    assert metrics["text_to_volume_recall_at_1"]["value"] == pytest.approx(5 / 6)
    # The first volume ties two reports: pessimistically it is not found at 1.
    assert metrics["volume_to_text_recall_at_1"]["value"] == pytest.approx(4 / 6)
    assert metrics["recall_at_1"]["value"] == pytest.approx(4.5 / 6)


def test_other_modes_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    write_ct_rate(tmp_path / "data", num_train=0, num_valid=2)
    with pytest.raises(ValueError, match="use zero_shot, frozen, finetune"):
        CtRateRetrieval(mode="prompt_tuned")
    params = CtRateRetrieval(num_bootstrap=100).model_copy(update={"mode": "prompt_tuned"})
    with pytest.raises(ValueError, match="use zero_shot, frozen or finetune"):
        evaluate(
            TASK, checkpoint, tmp_path / "data", tmp_path / "out", params, lambda step, m: None
        )


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_training_needs_pairs(tmp_path: Path, checkpoint: Path, mode: str) -> None:
    write_ct_rate(tmp_path / "data", num_train=0, num_valid=2)
    params = CtRateRetrieval(mode=mode, num_bootstrap=100)
    with pytest.raises(ValueError, match="or use zero_shot"):
        evaluate(
            TASK, checkpoint, tmp_path / "data", tmp_path / "out", params, lambda step, m: None
        )


def test_a_second_look_needs_what_looks(tmp_path: Path, checkpoint: Path) -> None:
    write_ct_rate(tmp_path / "data", num_train=0, num_valid=2)
    params = CtRateRetrieval(mode="zero_shot", rerank_top=2, num_bootstrap=100)
    result = evaluate(
        TASK, checkpoint, tmp_path / "data", tmp_path / "out", params, lambda step, m: None
    )
    reason = result["unavailable"]["reranked_text_to_volume_recall_at_1"]
    assert reason == "the model has no DFA: it was pre-trained with objective.dfa_weight 0"
    assert "rerank_pair_forwards" not in result["counts"]


def test_a_second_look_and_what_it_cost(tmp_path: Path, fusing_checkpoint: Path) -> None:
    write_ct_rate(tmp_path / "data", num_train=0, num_valid=4)
    params = CtRateRetrieval(mode="zero_shot", rerank_top=2, num_bootstrap=100)
    out = tmp_path / "out"
    result = evaluate(TASK, fusing_checkpoint, tmp_path / "data", out, params, lambda step, m: None)
    counts = result["counts"]
    with np.load(out / "predictions" / "reranked.npz") as file:
        assert counts["rerank_pair_forwards"] == np.isfinite(file["pair"]).sum()
    assert counts["rerank_top"] == 2
    assert 4 * 2 <= counts["rerank_pair_forwards"] <= 2 * 4 * 2
    assert counts["rerank_seconds"] > 0
    metrics = result["metrics"]
    for direction in ("text_to_volume", "volume_to_text"):
        # Among the first two the order may change, who is among them may not.
        first, again = (
            metrics[f"{name}{direction}_mean_rank_percentile"]["value"]
            for name in ("", "reranked_")
        )
        assert abs(first - again) <= 1 / 3
    assert (out / "figures" / "sentence_attention.png").exists()
