import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.msd_lung import cases
from mg3d.finetuning.task import evaluate, score, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import MsdLung

from .layouts import write_msd_lung

TASK = DOWNSTREAM["msd_lung"]
PARAMS = MsdLung(
    mode="frozen", num_steps=1, batch_size=1, test_fraction=0.6, validation_fraction=0,
    num_bootstrap=100,
)  # fmt: skip
FOLD = {"train": ["lung_001", "lung_004", "lung_007"], "val": ["lung_010"]}


def test_cases_and_what_is_none(tmp_path: Path) -> None:
    write_msd_lung(tmp_path)
    ledger = Ledger("msd_lung", "case")
    found = cases(tmp_path, ledger)
    names = [case.image.name for case in found]
    assert names == [f"lung_{number:03d}.nii.gz" for number in (1, 4, 7, 10, 13)]
    assert all(case.mask and case.mask.name == case.image.name for case in found)
    assert all(case.mask and case.mask.parent.name == "labelsTr" for case in found)
    assert len({case.patient_id for case in found}) == 5
    assert {case.split for case in found} == {None}
    assert Counter(entry.reason for entry in ledger.entries) == {
        Reason.STRAY_FILE: 2,  # the one that is listed, the one that is not
        Reason.ORPHAN_MASK: 1,
        Reason.ORPHAN_IMAGE: 1,
        Reason.UNSAFE_PATH: 1,
        Reason.NOT_IN_SPLIT: 2,
    }


def test_the_folder_itself_may_be_the_task(tmp_path: Path) -> None:
    write_msd_lung(tmp_path)
    assert len(cases(tmp_path / "Task06_Lung", Ledger("msd_lung", "case"))) == 5


def test_nnunets_first_fold_is_kept(tmp_path: Path) -> None:
    write_msd_lung(tmp_path, split=[FOLD, {"train": ["lung_010"], "val": ["lung_001"]}])
    ledger = Ledger("msd_lung", "case")
    found = cases(tmp_path, ledger)
    assert {case.image.name[:8]: case.split for case in found} == {
        "lung_001": "train", "lung_004": "train", "lung_007": "train", "lung_010": "test",
    }  # fmt: skip
    left_out = [
        e for e in ledger.entries if e.detail == "not in the first fold of splits_final.json"
    ]
    assert len(left_out) == 1
    split = split_cases(found, seed=0, validation_fraction=0.34, test_fraction=0.2)
    assert [len(split[name]) for name in ("train", "validation", "test")] == [2, 1, 1]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ([FOLD | {"val": ["lung_001"]}], "lung_001 is in train and in val"),
        ([FOLD | {"val": ["lung_555"]}], "names lung_555, which dataset.json does not"),
        ({"train": []}, "is no nnU-Net split"),
        ([], "is no nnU-Net split"),
    ],
)
def test_a_bad_split_is_refused(tmp_path: Path, split: object, message: str) -> None:
    write_msd_lung(tmp_path, split=split)
    with pytest.raises(ValueError, match=message):
        cases(tmp_path, Ledger("msd_lung", "case"))


def test_wrong_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unpack Task06_Lung.tar under"):
        cases(tmp_path, Ledger("msd_lung", "case"))


def test_end_to_end_with_lesions(tmp_path: Path, checkpoint: Path) -> None:
    write_msd_lung(tmp_path / "data")
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["cases"] == {"train": 2, "validation": 0, "test": 3}
    assert result["headline"]["name"] == "dice"
    assert result["nulls"]["empty_mask"]["lesion_f1"]["value"] == 0
    assert {path.stem for path in (out / "figures").iterdir()} == {"overlays", "bland_altman"}
    # A perfect prediction scores 1 in every case with a tumour, whatever spacing and orientation.
    shutil.rmtree(out / "predictions" / "model")
    shutil.copytree(out / "predictions" / "reference", out / "predictions" / "model")
    perfect = score(TASK, out, PARAMS)["metrics"]
    for name in ("dice", "nsd_4mm", "pooled_dice", "lesion_f1"):
        assert perfect[name]["value"] == 1
    assert perfect["hd95_mm"]["value"] == perfect["volume_bias_ml"]["value"] == 0
