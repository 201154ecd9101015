import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mg3d.downstream import DOWNSTREAM
from mg3d.downstream.covid19_20 import blocks, cases
from mg3d.finetuning.task import evaluate, score
from mg3d.ledger import Ledger, Reason
from mg3d.params import Covid1920

from .layouts import write_covid19_20

TASK = DOWNSTREAM["covid19_20"]
PARAMS = Covid1920(
    mode="finetune", num_steps=2, batch_size=2, test_fraction=0.5, validation_fraction=0,
    num_bootstrap=100,
)  # fmt: skip


def test_cases_and_orphans(tmp_path: Path) -> None:
    write_covid19_20(tmp_path)
    ledger = Ledger("covid19_20", "case")
    found = cases(tmp_path, ledger)
    assert sorted(str(e.reason) for e in ledger.entries) == sorted(
        [Reason.ORPHAN_MASK, Reason.ORPHAN_IMAGE, Reason.NOT_IN_SPLIT]
    )
    names = sorted(case.image.name for case in found)
    assert "volume-covid19-A-0008_1_ct.nii.gz" in names
    assert len(names) == 7
    assert {case.image.name[:21] for case in found if case.split == "test"} == {
        "volume-covid19-A-0003", "volume-covid19-A-0008",
    }  # fmt: skip
    for case in found:
        assert case.mask is not None
        assert case.mask.name == case.image.name.replace("_ct", "_seg")


def test_series_of_one_patient_stay_together(tmp_path: Path) -> None:
    train = tmp_path / "Train"
    train.mkdir()
    for stem in ("volume-covid19-A-0047", "volume-covid19-A-0047_1", "volume-covid19-A-0048"):
        for suffix in ("ct", "seg"):
            (train / f"{stem}_{suffix}.nii.gz").touch()
    found = cases(tmp_path, Ledger("covid19_20", "case"))
    assert len({case.patient_id for case in found}) == 2
    assert len({case.case_id for case in found}) == 3


def test_folds_are_the_references_blocks_of_ids() -> None:
    """199 names give 40 / 40 / 40 / 40 / 39; numbers, not letters, decide the order."""
    stems = [f"volume-covid19-A-{number}" for number in range(9000, 9000 + 3 * 199, 3)]
    folds = blocks([*stems[::-1], f"{stems[0]}_1"])
    assert [folds[stem] for stem in stems] == [0] * 40 + [1] * 40 + [2] * 40 + [3] * 40 + [4] * 39
    folds = blocks(["volume-covid19-A-10000", "volume-covid19-A-9999_1"])
    assert folds == {"volume-covid19-A-9999": 0, "volume-covid19-A-10000": 1}


def test_companions_are_no_cases(tmp_path: Path) -> None:
    """macOS writes them in pairs, so that they look like a case."""
    write_covid19_20(tmp_path)
    for suffix in ("ct", "seg"):
        (tmp_path / "Train" / f"._volume-covid19-A-0003_{suffix}.nii.gz").touch()
    ledger = Ledger("covid19_20", "case")
    assert len(cases(tmp_path, ledger)) == 7
    assert [e.reason for e in ledger.entries].count(Reason.STRAY_FILE) == 1


def test_wrong_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ships Train and Validation"):
        cases(tmp_path, Ledger("covid19_20", "case"))


def test_end_to_end_in_native_space(tmp_path: Path, checkpoint: Path) -> None:
    write_covid19_20(tmp_path / "data")
    out = tmp_path / "out"
    result = evaluate(TASK, checkpoint, tmp_path / "data", out, PARAMS, lambda step, m: None)
    assert json.loads((out / "result.json").read_text()) == result
    assert result["ledger"]["reasons"] == {
        "not_in_split": 1, "orphan_image": 1, "orphan_mask": 1, "wrong_shape": 1,
    }  # fmt: skip
    assert result["headline"]["name"] == "dice"
    assert result["headline"]["null"]["empty_mask"] == 0
    assert result["encoder_coverage"]["missing"] == 0
    assert {path.stem for path in (out / "figures").iterdir()} == {"overlays", "bland_altman"}
    for path in (out / "predictions" / "model").iterdir():
        predicted = nibabel.load(path)
        reference = nibabel.load(out / "predictions" / "reference" / path.name)
        assert predicted.shape == reference.shape == (24, 22, 12)
        assert np.allclose(predicted.affine, reference.affine)
        assert predicted.header.get_zooms() == pytest.approx((6, 6, 10))

    # A perfect prediction scores 1 in every case with a lesion, whatever the orientation.
    shutil.rmtree(out / "predictions" / "model")
    shutil.copytree(out / "predictions" / "reference", out / "predictions" / "model")
    perfect = score(TASK, out, PARAMS)["metrics"]
    assert perfect["dice"]["value"] == perfect["nsd_2mm"]["value"] == 1
    assert perfect["hd95_mm"]["value"] == perfect["volume_bias_ml"]["value"] == 0
    next((out / "predictions" / "model").iterdir()).unlink()
    with pytest.raises(ValueError, match="every test case must have one"):
        score(TASK, out, PARAMS)
