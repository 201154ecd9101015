import numpy as np

from mg3d.figures.segmentation import agreement, bland_altman, overlays


def test_overlays_show_front_up_and_right_on_the_left() -> None:
    image = np.zeros((6, 4))
    image[5, 3] = 1  # most right, most front
    mask = image > 0
    figure = overlays([image], [mask], [np.zeros_like(mask)], ["a"])
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (4, 6)
    assert shown[0, 0] == 1


def test_overlays_leave_spare_panels_empty() -> None:
    image = np.zeros((4, 4))
    figure = overlays([image] * 5, [image > 0] * 5, [image > 0] * 5, list("abcde"))
    assert [len(axes.images) for axes in figure.axes] == [1] * 5 + [0] * 3


def test_bland_altman_draws_bias_and_limits() -> None:
    figure = bland_altman(np.array([2.0, 4.0]), np.array([1.0, 1.0]), 2.0, (-1.0, float("nan")))
    heights = [line.get_ydata()[0] for line in figure.axes[0].lines]
    assert heights == [2.0, -1.0, 0.0]
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[1.5, 1.0], [2.5, 3.0]]


def test_overlays_outline_every_class() -> None:
    classes = np.zeros((12, 12), np.uint8)
    classes[2:10, 2:10] = 1
    classes[4:8, 4:8] = 2
    figure = overlays([classes * 1.0], [classes], [np.zeros_like(classes)], ["a"])
    [contours] = figure.axes[0].collections
    assert list(contours.levels) == [0.5, 1.5]


def test_agreement_draws_each_name_and_the_identity() -> None:
    pairs = {"lv": (np.array([50.0, 60.0]), np.array([55.0, 60.0]))}
    axes = agreement(pairs, "ejection fraction", "%").axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[55.0, 50.0], [60.0, 60.0]]
    assert axes.lines[0].get_xydata().tolist() == [[0, 0], [60, 60]]
