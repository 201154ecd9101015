from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK

from mg3d.data.resample import resample
from mg3d.finetuning import candidates
from mg3d.finetuning.candidates import Scan, balanced, views
from mg3d.finetuning.cubes import IsotropicScan
from mg3d.finetuning.images import load_image
from mg3d.finetuning.task import Case
from mg3d.params import CandidateFinetune

PARAMS = CandidateFinetune(
    cube_voxels=32, cube_spacing_mm=2.0, num_negatives_per_scan=3, num_positive_views=4,
    num_bootstrap=100,
)  # fmt: skip


def ball(path: Path, place: tuple[float, float, float], flipped: bool) -> None:
    """Air with a ball of 10 mm at world ``place`` (LPS), anisotropic voxels."""
    image = SimpleITK.Image([60, 50, 24], SimpleITK.sitkInt16)
    image.SetSpacing((1.5, 2.0, 5.0))
    if flipped:
        image.SetDirection((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1))
    image.SetOrigin((40.0, 30.0, -300.0) if flipped else (-50.0, -70.0, -300.0))
    z, y, x = np.indices((24, 50, 60))
    affine = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    world = np.stack([x, y, z], -1) @ affine.T + image.GetOrigin()
    inside = np.linalg.norm(world - place, axis=-1) <= 10
    filled = SimpleITK.GetImageFromArray(np.where(inside, 100, -900).astype(np.int16))
    filled.CopyInformation(image)
    SimpleITK.WriteImage(filled, str(path))


@pytest.mark.parametrize("flipped", [False, True])
def test_the_cubes_centre_is_the_place_in_the_world(tmp_path: Path, flipped: bool) -> None:
    place = (-8.0, -20.0, -240.0)
    ball(tmp_path / "a.mhd", place, flipped)
    scan = IsotropicScan(*load_image(Case("c", "p", tmp_path / "a.mhd")), PARAMS)
    cube = scan.cube(place).astype(float)
    assert cube[16, 16, 16] > 0
    weight = np.clip(cube + 900, 0, None)
    centroid = [float((index * weight).sum() / weight.sum()) for index in np.indices(cube.shape)]
    assert centroid == pytest.approx([16, 16, 16], abs=0.6)  # to half a voxel of 2 mm
    moved = scan.cube((place[0] + 14, place[1], place[2])).astype(float)  # to the patient's left
    assert moved[16, 16, 23] == cube[16, 16, 16]  # indices grow to the right, so it moves there
    assert moved[16, 16, 16] < cube[16, 16, 16]


def test_a_place_at_the_border_is_padded_with_air(tmp_path: Path) -> None:
    ball(tmp_path / "a.mhd", (-50.0, -70.0, -300.0), flipped=False)
    scan = IsotropicScan(*load_image(Case("c", "p", tmp_path / "a.mhd")), PARAMS)
    cube = scan.cube((-50.0, -70.0, -300.0))
    assert cube[16, 15, 15] > 0  # the corner of the volume, and its far side is outside
    assert (cube[:15] == -1000).all()
    assert (scan.cube((500.0, 0, 0)) == -1000).all()


def test_a_cube_of_known_millimetres_has_as_many_voxels(tmp_path: Path) -> None:
    ball(tmp_path / "a.mhd", (-8.0, -20.0, -240.0), flipped=True)
    scan = IsotropicScan(*load_image(Case("c", "p", tmp_path / "a.mhd")), PARAMS)
    bright = scan.cube((-8.0, -20.0, -240.0)) > -400
    assert bright.sum() * 2.0**3 == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.12)


TURNED = np.array([[0.9, 0.1, 0], [-0.1, 0.9, 0.05], [0, -0.05, 3.1]])


@pytest.mark.parametrize("axes", [np.diag([0.7, 0.8, 1.3]), np.diag([2.4, 2.4, 7.0]), TURNED])
def test_cubes_are_those_of_the_whole_scan_resampled(axes: np.ndarray) -> None:
    generator = np.random.default_rng(0)
    volume = generator.integers(-1024, 1500, (60, 50, 24)).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (-31.3, 12.7, -207.9)
    scan = IsotropicScan(volume, affine, PARAMS)
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = scan.origin_mm
    boxes = np.maximum(1, np.rint(2.0 / np.linalg.norm(axes, axis=0))).astype(int).tolist()
    depth, height, width = scan.shape_xyz[::-1].tolist()
    whole = resample(volume, affine, grid, (depth, height, width), -1000, boxes)
    far = np.pad(whole, 40, constant_values=-1000)
    for _ in range(6):  # also places beyond the border
        index = generator.integers(-4, scan.shape_xyz + 4)  # x, y, z
        x, y, z = (scan.origin_mm + 2.0 * index).tolist()
        start = index[::-1] + 40 - 16
        expected = far[tuple(slice(a, a + 32) for a in start)]
        gap = np.abs(scan.cube((-x, -y, z)).astype(int) - expected)
        assert gap.max() <= 1  # where a value lies midway between two integers
        assert (gap > 0).mean() < 0.01


SCAN = Scan(
    "s", "p", Path("s.mhd"),
    candidates=((0.0, 0, 0, 1.0), *((float(n), 50, 0, 0.0) for n in range(9))),
    lesions=((0.0, 0, 0, 8.0),),
)  # fmt: skip


def test_views_are_shifted_but_the_first_and_depend_on_seed_and_scan_only() -> None:
    found = views(SCAN, PARAMS)
    assert found == views(SCAN, PARAMS)
    assert found != views(SCAN, PARAMS.model_copy(update={"seed": 1}))
    positive = [view for view in found if view.case.labels["lesion"]]
    assert (len(positive), len(found)) == (4, 7)
    shifts = [float(np.linalg.norm(view.place_mm)) for view in positive]
    assert shifts[0] == 0
    assert 0 < min(shifts[1:]) < max(shifts) <= 3.0
    assert len({view.case.case_id for view in found}) == 7


def test_turned_cubes_hold_the_same_voxels() -> None:
    cube = np.arange(27).reshape(3, 3, 3)
    for view in views(SCAN, PARAMS):
        turned = view.turned(cube)
        assert sorted(turned.ravel()) == list(range(27))
        assert turned[1, 1, 1] == 13


def test_training_is_balanced() -> None:
    cases = [view.case for view in views(SCAN, PARAMS)]
    labels = [case.labels["lesion"] for case in balanced(cases)]
    assert (labels.count(0), labels.count(1)) == (4, 4)
    with pytest.raises(ValueError, match="4 positive and 0 negative candidates"):
        balanced(cases[:4])


def write(folder: Path, probability: list[float]) -> None:
    """Two scans; a nodule found twice, one missed by the list, an excluded finding."""
    rows = [
        ("a", 0, 0, 0, 1), ("a", 0, 0, 3, 1), ("a", 50, 0, 0, 0), ("a", 90, 0, 0, 0),
        ("b", 0, 0, 0, 1), ("b", 70, 0, 0, 0), ("b", 0, 40, 0, 0),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["case_id", "x", "y", "z", "lesion"]).assign(p=probability)
    for system in ("model", *candidates.NULLS):
        table.to_csv(folder / f"{system}.csv", index=False)
    lesions = [
        ("a", 0, 0, 0, 10, 0), ("a", 0, 0, 99, 6, 0), ("b", 0, 0, 0, 6, 0), ("a", 50, 2, 0, 6, 1),
    ]  # fmt: skip
    columns = ["case_id", "x", "y", "z", "mm", "excluded"]
    pd.DataFrame(lesions, columns=columns).to_csv(folder / "lesions.csv", index=False)
    pd.DataFrame({"case_id": ["a", "b"], "patient_id": ["a", "b"]}).to_csv(
        folder / "scans.csv", index=False
    )


def test_scores_by_hand(tmp_path: Path) -> None:
    # Left: N .9 (twice found: .9, .5), F .8, N .7, F .4, F .3; the excluded .95 counts nowhere.
    write(tmp_path, [0.5, 0.9, 0.95, 0.8, 0.7, 0.4, 0.3])
    scores = candidates.score(tmp_path, PARAMS)
    expected = [1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]
    assert scores.metrics["cpm"].value == pytest.approx(np.mean(expected))
    assert scores.metrics["sensitivity_at_0.125"].value == pytest.approx(1 / 3)
    assert scores.counts["lesions"] == 3
    assert scores.counts["lesions_with_a_candidate"] == 2
    assert scores.counts["false_candidates_per_scan"] == 1.5
    assert "2 of 3 lesions: no sensitivity can exceed 0.667" in scores.notes[0]
    assert scores.metrics["auroc"].value == pytest.approx(7 / 12)
    assert set(candidates.draw(tmp_path, PARAMS)) == {"froc", "roc", "pr", "calibration"}


def test_too_few_lesions_are_null_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path, [0.5] * 7)
    lesions = pd.read_csv(tmp_path / "lesions.csv").iloc[:2]
    lesions.to_csv(tmp_path / "lesions.csv", index=False)
    found = candidates.score(tmp_path, PARAMS).metrics["cpm"]
    assert (found.value, found.reason) == (None, "2 lesions in the test scans: 3 are needed")
