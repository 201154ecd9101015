import numpy as np
import pytest

from mg3d.figures.inspection import (
    Study,
    contact_sheet,
    distributions,
    hu_histogram,
    mid_planes,
    reasons_of_quarantine,
)


def test_planes_are_turned_as_the_letters_say() -> None:
    """A volume whose voxels grow towards one end: the bright edge is where that end's letter is."""
    for axis, bright in (
        (0, {"coronal": "top", "sagittal": "top"}),  # S
        (1, {"axial": "top", "sagittal": "left"}),  # A
        (2, {"axial": "left", "coronal": "left"}),  # R
    ):
        shape = [1, 1, 1]
        shape[axis] = 4
        volume = np.broadcast_to(np.arange(4.0).reshape(shape), (4, 4, 4))
        planes = mid_planes(volume)
        assert set(planes) == {"axial", "coronal", "sagittal"}
        for name, side in bright.items():
            edge = planes[name][0] if side == "top" else planes[name][:, 0]
            assert (edge == 3).all(), (axis, name)


def test_contact_sheet_letters_proportions_and_titles() -> None:
    planes = mid_planes(np.zeros((4, 6, 8)))
    figure = contact_sheet([Study(f"s{i}", planes, (5.0, 1.0, 2.0)) for i in range(4)], per_row=3)
    assert len(figure.axes) == 2 * 9
    first = figure.axes[:3]
    assert ["".join(t.get_text() for t in axes.texts) for axes in first] == ["APRL", "SIRL", "SIAP"]
    assert [axes.get_aspect() for axes in first] == [0.5, 2.5, 5.0]
    assert figure.axes[9].get_title(loc="left") == "s3"
    with pytest.raises(ValueError, match="no study"):
        contact_sheet([])


def test_distributions_histogram_and_reasons() -> None:
    figure = distributions({"spacing z / mm": np.array([1.0, 2.0, 4.0]), "n": np.array([3.0])})
    assert "1 | 2 | 4 (n=3)" in figure.axes[0].get_title()
    assert figure.axes[0].get_xlabel() == "spacing z / mm"
    figure = hu_histogram(np.array([1.0, 3.0]), np.array([-1000, 0, 1000]), (-900, 900))
    assert figure.axes[0].patches[0].get_data().values.tolist() == [0.25, 0.75]
    figure = reasons_of_quarantine({"a": {"not_ct": 2, "truncated": 1}, "b": {}})
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["a: not_ct", "a: truncated", "b: nothing"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2, 1, 0]
