"""The figures show the numbers they were given, where they belong."""

import numpy as np
import pytest

from mg3d.figures.pretraining import loss_curves, reconstruction, similarity_matrix


def test_loss_curves_hold_the_given_points() -> None:
    train = np.array([[1, 3.0], [2, 2.0], [3, 1.5]])
    mim_curves = {"train": train, "validation": train[1:]}
    figure = loss_curves({"mim": mim_curves, "itc": {"train": train}})
    mim, itc = figure.axes[:2]
    assert mim.get_title() == "mim"
    np.testing.assert_array_equal(mim.lines[0].get_xydata(), train)
    np.testing.assert_array_equal(mim.lines[1].get_xydata(), train[1:])
    assert len(itc.lines) == 1
    with pytest.raises(ValueError, match="no loss"):
        loss_curves({})


def test_reconstruction_shows_head_and_front_up_and_right_on_the_left() -> None:
    original = np.zeros((8, 10, 12), np.float32)
    original[-1, 5, -1] = 1  # head, patient's right, in the middle coronal plane
    original[4, -1, -1] = 1  # front, patient's right, in the middle axial plane
    figure = reconstruction(original, original * 0, original * 0.5, "case")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    axial, coronal = shown[0], shown[4]
    assert axial.shape == (10, 12)
    assert axial[0, 0] == 1
    assert coronal.shape == (8, 12)
    assert coronal[0, 0] == 1
    assert shown[3][0, 0] == pytest.approx(0.5)  # |error|
    with pytest.raises(ValueError, match="differ"):
        reconstruction(original, original[1:], original)


def test_similarity_matrix_rings_what_was_found() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.2, 0.2, 0.1], [0.0, 0.1, 0.7]])
    axes = similarity_matrix(similarity).axes[0]  # the tie in the second row is no find
    np.testing.assert_array_equal(axes.images[0].get_array(), similarity)
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 2])
    with pytest.raises(ValueError, match="square"):
        similarity_matrix(similarity[:2])
