import json
import shutil
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.acdc import cases, patient_folds, read_info
from mg3d.finetuning.leaks import refuse_leaks
from mg3d.finetuning.split_files import (
    Listed,
    as_csv,
    as_listed,
    listing,
    read_split,
    split_file,
    write_split,
)
from mg3d.finetuning.task import evaluate, score, split_cases
from mg3d.ledger import Ledger, Reason
from mg3d.params import Acdc

from .layouts import spoil_acdc, write_acdc

TASK = DOWNSTREAM["acdc"]
PARAMS = Acdc(
    mode="frozen", num_steps=1, batch_size=1, validation_fraction=0.1, num_bootstrap=100,
    spacing_mm=(None, 3.0, 3.0),
)  # fmt: skip
SHARES = {"seed": 0, "validation_fraction": 0.1, "test_fraction": 0.2}


def training(number: int) -> list[tuple[str, int, int, int]]:
    """So many training patients with frames 1 and 12."""
    return [("training", patient, 1, 12) for patient in range(1, number + 1)]


def write_frames(data: Path, number: int) -> list[str]:
    """Names of empty files of so many training patients, in order."""
    names = []
    for _, patient, *frames in training(number):
        folder = data / "database" / "training" / f"patient{patient:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: NOR\n")
        for frame in frames:
            names.append(f"{folder.name}_frame{frame:02d}")
            (folder / f"{names[-1]}.nii.gz").touch()
            (folder / f"{names[-1]}_gt.nii.gz").touch()
    return names


def test_frames_are_those_of_info_cfg(tmp_path: Path) -> None:
    write_acdc(tmp_path)
    spoil_acdc(tmp_path)
    ledger = Ledger("acdc", "case")
    found = cases(tmp_path, ledger)
    assert [case.image.name for case in found] == [
        "patient101_frame01.nii.gz", "patient101_frame09.nii.gz",
        "patient001_frame02.nii.gz", "patient001_frame11.nii.gz",
        "patient002_frame04.nii.gz", "patient002_frame13.nii.gz", "patient088_frame01.nii.gz",
    ]  # fmt: skip
    assert all(case.mask and case.mask.name.endswith("_gt.nii.gz") for case in found)
    assert [case.labels["end_diastole"] for case in found] == [1, 0, 1, 0, 1, 0, 1]
    assert Counter(entry.reason for entry in ledger.entries) == {
        Reason.ORPHAN_IMAGE: 1, Reason.MISSING_TAG: 2,
    }  # fmt: skip


def test_both_frames_are_on_the_same_side_and_testing_is_test(tmp_path: Path) -> None:
    write_frames(tmp_path, 10)
    split = split_cases(cases(tmp_path, Ledger("acdc", "case")), **SHARES)  # type: ignore[arg-type]
    patients = {name: {case.patient_id for case in part} for name, part in split.items()}
    assert {name: len(part) for name, part in split.items()} == {
        "train": 16, "validation": 4, "test": 0,
    }  # fmt: skip
    assert not patients["train"] & patients["validation"]
    write_acdc(tmp_path / "small")
    found = cases(tmp_path / "small", Ledger("acdc", "case"))
    assert {c.image.name[:10] for c in found if c.split == "test"} == {"patient101"}


def test_folds_are_nnunets() -> None:
    """By its rule, written out: unique patients, RandomState(1234), every fifth."""
    names = [f"patient{number:03d}" for number in range(1, 101)]
    places = np.random.RandomState(1234).permutation(100)
    folds = patient_folds(names[::-1] + names)
    for fold in range(5):
        chosen = {name for name, number in folds.items() if number == fold}
        assert chosen == {names[place] for place in places[fold::5]}
        assert len(chosen) == 20


def test_the_references_split_by_frames_fails_the_guard(tmp_path: Path) -> None:
    """Every fourth frame is its validation, whosever the other frame is (spec/downstream 10)."""
    names = write_frames(tmp_path, 8)
    for fold in range(3):
        val = names[fold::4]
        leaky = [{"train": [name for name in names if name not in val], "val": val}]
        file = tmp_path / "database" / "training" / "splits_final.json"
        file.write_text(json.dumps(leaky))
        found = cases(tmp_path, Ledger("acdc", "case"))
        with pytest.raises(ValueError, match="a patient may be in one part only"):
            split_cases(found, **SHARES)  # type: ignore[arg-type]


def test_every_fourth_frame_taken_at_its_word_fails_the_guard(tmp_path: Path) -> None:
    write_frames(tmp_path, 8)
    frames = sorted(cases(tmp_path, Ledger("acdc", "case")), key=lambda case: case.image.name)
    held_out = frames[::4]
    split = {"train": [c for c in frames if c not in held_out], "validation": [], "test": held_out}
    with pytest.raises(ValueError, match=r"case-\w+ \(train\) and case-\w+ \(test\) are of one"):
        refuse_leaks("acdc", split, texts=False)


def test_the_shipped_list_is_what_the_rule_gives_to_the_official_patients(tmp_path: Path) -> None:
    """100 and 50 patients; 20 of each pathology train, and 4 of each are in each fold."""
    groups = [group for group in ("DCM", "HCM", "MINF", "NOR", "RV") for _ in range(20)]
    for number in range(1, 151):
        part = "training" if number <= 100 else "testing"
        folder = tmp_path / "database" / part / f"patient{number:03d}"
        folder.mkdir(parents=True)
        group = groups[(number - 1) % 100]
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {group}\n")
        for name in ("frame01", "frame01_gt"):
            (folder / f"{folder.name}_{name}.nii.gz").touch()
    found = cases(tmp_path, Ledger("acdc", "case"))
    assert len(found) == 150
    listed = TASK.listed
    assert listed is not None
    places = listing(found, listed.name_of)
    assert as_csv("patient", places) == split_file("acdc").read_text()
    folds = Counter((c.stratum, places[c.image.parent.name][1]) for c in found if c.split != "test")
    assert set(folds.values()) == {4}
    assert len(folds) == 25
    write_split("acdc", found[::-1], listed, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == split_file("acdc").read_text()


def test_the_list_decides_who_takes_part(tmp_path: Path) -> None:
    write_frames(tmp_path, 10)
    stranger = tmp_path / "database" / "training" / "patient999"
    shutil.copytree(tmp_path / "database" / "training" / "patient001", stranger)
    for path in sorted(stranger.glob("patient001*")):
        path.rename(stranger / path.name.replace("001", "999", 1))
    ledger = Ledger("acdc", "case")
    found = as_listed("acdc", cases(tmp_path, ledger), TASK.listed, ledger)
    places = read_split(split_file("acdc"), Listed("patient", str))
    assert {c.image.parent.name: (c.split, c.fold) for c in found} == {
        f"patient{n:03d}": places[f"patient{n:03d}"] for n in range(1, 11)
    }
    assert [(e.reason, e.detail) for e in ledger.entries] == [
        (Reason.NOT_IN_SPLIT, "not in splits/acdc.csv")
    ] * 2


def test_a_list_by_patients_replaces_ours(tmp_path: Path) -> None:
    names = write_frames(tmp_path, 4)
    file = tmp_path / "database" / "training" / "splits_final.json"
    file.write_text(json.dumps([{"train": names[2:6], "val": names[:2]}]))
    ledger = Ledger("acdc", "case")
    split = split_cases(cases(tmp_path, ledger), **SHARES)  # type: ignore[arg-type]
    assert {case.image.name[:18] for case in split["validation"]} == set(names[:2])
    assert {case.image.name[:18] for case in split["train"]} == set(names[2:6])
    assert [entry.reason for entry in ledger.entries] == [Reason.NOT_IN_SPLIT] * 2


def test_wrong_layout_and_missing_info(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ACDC ships database/training and testing"):
        cases(tmp_path, Ledger("acdc", "case"))
    assert read_info(tmp_path / "Info.cfg") == {}


def test_end_to_end_slices_stay_and_ejection_is_scored(tmp_path: Path, checkpoint: Path) -> None:
    write_acdc(tmp_path / "data")
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["cases"]["test"] == 2
    # 28 x 26 x 8 voxels of 32 x 32 x 32: the thin stack is padded, and the result says by how much.
    assert result["padding_fraction"] == pytest.approx(1 - 28 * 26 * 8 / 32**3, abs=1e-4)
    assert {path.stem for path in (out / "figures").iterdir()} == {
        "overlays", "bland_altman_rv", "bland_altman_myocardium", "bland_altman_lv",
        "ejection_fraction",
    }  # fmt: skip
    for path in (out / "predictions" / "model").iterdir():
        reference = nibabel.load(out / "predictions" / "reference" / path.name)
        assert nibabel.load(path).shape == reference.shape == (28, 26, 8)
        assert set(np.unique(reference.dataobj)) == {0, 1, 2, 3}
    shutil.rmtree(out / "predictions" / "model")
    shutil.copytree(out / "predictions" / "reference", out / "predictions" / "model")
    perfect = score(TASK, out, PARAMS)["metrics"]
    for name in ("dice", "rv_dice", "myocardium_end_systole_dice", "lv_nsd_2mm"):
        assert perfect[name]["value"] == 1
    for name in ("hd95_mm", "lv_end_diastole_hd_mm", "lv_ef_error_points", "rv_ef_bias_points"):
        assert perfect[name]["value"] == 0
    assert perfect["false_positive_ml"]["value"] is None
