import numpy as np
import pytest

from mg3d.phantom.canvas import Canvas, Grid
from mg3d.phantom.draws import Draws
from mg3d.phantom.heart import LV, MYOCARDIUM, RV, acquire_heart, classes, draw_heart


def fine(heart_index: int) -> tuple[Canvas, float]:
    """A grid of 1 mm (2 mm in z) that holds any heart, and the volume of a voxel in ml."""
    grid = Grid((60, 150, 170), (2.0, 1.0, 1.0), (-105.0, -75.0, -62.0))
    return Canvas(grid), 0.002


@pytest.mark.parametrize("index", range(6))
def test_volumes_are_those_of_half_an_ellipsoid_and_the_ejection_is_planted(index: int) -> None:
    heart = draw_heart(Draws(0, "heart", index))
    canvas, voxel_ml = fine(index)
    apex = -0.5 * heart.lv_length_mm
    diastole, systole = (classes(canvas, h, apex) for h in (heart, heart.systole()))
    expected_ml = 2 / 3 * np.pi * heart.lv_radius_mm**2 * heart.lv_length_mm / 1000
    measured = [float((labels == LV).sum()) * voxel_ml for labels in (diastole, systole)]
    assert measured[0] == pytest.approx(expected_ml, rel=0.03)
    assert 1 - measured[1] / measured[0] == pytest.approx(heart.lv_ejection, abs=0.02)
    muscle = [float((labels == MYOCARDIUM).sum()) for labels in (diastole, systole)]
    assert muscle[1] == pytest.approx(muscle[0], rel=0.1)  # muscle is not ejected


def test_right_ventricle_is_on_the_right_and_the_muscle_closes_the_left() -> None:
    heart = draw_heart(Draws(0, "heart", 0))
    canvas, _ = fine(0)
    labels = classes(canvas, heart, -0.5 * heart.lv_length_mm)
    x = np.broadcast_to(canvas.x, labels.shape)
    assert x[labels == RV].mean() < x[labels == LV].mean() - 20  # LPS: right is negative
    cavity = labels == LV
    for axis in (1, 2):  # in the plane no cavity touches anything but muscle
        for step in (-1, 1):
            neighbour = np.roll(labels, step, axis)
            assert set(np.unique(neighbour[cavity])) <= {MYOCARDIUM, LV}


def test_patients_share_their_coil_between_frames_and_not_with_others() -> None:
    grid = Grid((6, 48, 48), (8.0, 3.0, 3.0), (-70.0, -70.0, -24.0))
    heart = draw_heart(Draws(0, "heart", 0))

    def mean(patient: str, frame: int) -> float:
        draws = Draws(0, patient)
        image, labels = acquire_heart(grid, heart, False, draws, draws.child(frame))
        return float(image[labels == LV].mean())

    assert mean("a", 1) == pytest.approx(mean("a", 2), rel=0.02)
    assert abs(mean("a", 1) / mean("b", 1) - 1) > 0.05
