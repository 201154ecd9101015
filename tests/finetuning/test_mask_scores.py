from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from mg3d.finetuning.mask_scores import (
    Classes,
    SystemMasks,
    ejection_fractions,
    metrics,
    read_cases,
    read_masks,
    volumes_ml,
)
from mg3d.params import Acdc

PHASES = ("end_diastole", "end_systole")
HEART = Classes(("rv", "lv"), 2.0, phases=PHASES, ventricles=("lv",))
PARAMS = Acdc(num_bootstrap=100)


def save(folder: Path, system: str, case_id: str, mask: np.ndarray) -> None:
    (folder / system).mkdir(exist_ok=True)
    image = nibabel.Nifti1Image(mask.astype(np.uint8), np.diag([1.5, 1.5, 8.0, 1.0]))
    nibabel.save(image, folder / system / f"{case_id}.nii.gz")


def slab(rv: int, lv: int) -> np.ndarray:
    """So many voxels in x of class 1 and 2, side by side, 4 x 4 in the other axes."""
    mask = np.zeros((24, 8, 6), np.uint8)
    mask[1 : 1 + rv, 2:6, 1:5] = 1
    mask[12 : 12 + lv, 2:6, 1:5] = 2
    return mask


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Two patients at two phases. LV of the first: 8 -> 4 (EF 50 %), predicted 8 -> 6 (25 %); of
    the second: 10 -> 5, predicted nothing -> 5 (counts as 0 %). RV of the second is absent."""
    rows = [
        ("a1", "a", PHASES[0], slab(4, 8), slab(4, 8)),
        ("a2", "a", PHASES[1], slab(2, 4), slab(3, 6)),
        ("b1", "b", PHASES[0], slab(0, 10), slab(2, 0)),
        ("b2", "b", PHASES[1], slab(0, 5), slab(0, 5)),
    ]
    for case_id, _, _, reference, predicted in rows:
        save(tmp_path, "reference", case_id, reference)
        save(tmp_path, "model", case_id, predicted)
    pd.DataFrame([row[:3] for row in rows], columns=["case_id", "patient_id", "phase"]).to_csv(
        tmp_path / "cases.csv", index=False
    )
    return tmp_path


def test_by_hand(predictions: Path) -> None:
    table = read_cases(predictions)
    masks = read_masks(predictions, "model", table["case_id"].tolist(), HEART)
    found = {name: e.value for name, e in metrics(masks, table, HEART, PARAMS).items()}
    rv = [1, 2 * 2 / 5]  # 2 of 2 and 3 voxels; the second patient has none
    lv = [1, 2 * 4 / 10, 0, 1]
    assert found["rv_dice"] == pytest.approx(np.mean(rv))
    assert found["lv_dice"] == pytest.approx(np.mean(lv))
    assert found["dice"] == pytest.approx(np.mean([1, (rv[1] + lv[1]) / 2, 0, 1]))
    assert found["lv_end_systole_dice"] == pytest.approx((0.8 + 1) / 2)
    assert found["lv_pooled_dice"] == pytest.approx(2 * (8 + 4 + 5) / (27 + 19))
    assert found["rv_pooled_dice"] == pytest.approx(2 * (4 + 2) / (6 + 9))
    voxel_ml = 16 * 1.5 * 1.5 * 8 / 1000
    assert found["false_positive_ml"] == pytest.approx((2 + 0) / 2 * voxel_ml)
    assert found["lv_volume_bias_ml"] == pytest.approx((0 + 2 - 10 + 0) / 4 * voxel_ml)
    assert found["lv_ef_error_points"] == pytest.approx((25 + 50) / 2)
    assert found["lv_ef_bias_points"] == pytest.approx(-(25 + 50) / 2)
    # Two more voxels in x at 1.5 mm: 95th percentile of the directed distances of the end face.
    assert found["lv_end_systole_hd_mm"] == pytest.approx((3.0 + 0.0) / 2)


def test_dice_is_scikit_learns_f1(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    reference, predicted = generator.integers(0, 3, (2, 12, 10, 8))
    save(tmp_path, "reference", "a", reference)
    save(tmp_path, "model", "a", predicted)
    masks = read_masks(tmp_path, "model", ["a"], HEART)
    expected = f1_score(reference.ravel(), predicted.ravel(), labels=[1, 2], average=None)
    assert masks.of("dice")[0] == pytest.approx(expected)
    measured, true = volumes_ml(tmp_path, "model", ["a"], 2)
    assert measured == pytest.approx(masks.of("volume_ml"))
    assert true == pytest.approx(masks.of("reference_volume_ml"))


def test_a_patient_without_both_phases_has_no_ejection_fraction() -> None:
    table = pd.DataFrame(
        {"patient_id": ["a", "a", "b"], "phase": [PHASES[1], PHASES[0], PHASES[0]]}
    )
    fractions = ejection_fractions(np.array([40.0, 100.0, 90.0]), table, PHASES)
    assert fractions.to_dict() == {"a": 60.0}
    empty = SystemMasks([], [])
    assert empty.of("dice").size == 0
    alone = ejection_fractions(np.array([90.0]), table.iloc[2:], PHASES)
    assert len(alone) == 0


def test_a_missing_prediction_is_an_error(predictions: Path) -> None:
    (predictions / "model" / "a2.nii.gz").unlink()
    with pytest.raises(ValueError, match="every test case must have one"):
        read_masks(predictions, "model", ["a1", "a2"], HEART)
