"""JPG slices: natural order, and folders that are no volume."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg3d.data.ct.refused import Refused
from mg3d.data.slices import find_slices, natural_key, read_slices


def test_slice_two_comes_before_slice_ten() -> None:
    names = ["10.jpg", "1.jpg", "2.jpg", "b3.jpg", "b12.jpg"]
    assert sorted(names, key=natural_key) == ["1.jpg", "2.jpg", "10.jpg", "b3.jpg", "b12.jpg"]


def test_hidden_twins_and_other_files_are_no_slices(tmp_path: Path) -> None:
    for name in ("2.jpg", "10.JPEG", "._2.jpg", "Thumbs.db", "1.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_slices(tmp_path)] == ["2.jpg", "10.JPEG"]


def test_a_number_left_out_is_a_missing_slice_but_names_may_start_anywhere(tmp_path: Path) -> None:
    for number in (7, 8, 9, 10):
        Image.fromarray(np.full((4, 6), 10 * number, np.uint8)).save(tmp_path / f"{number}.jpg")
    assert read_slices(find_slices(tmp_path)).shape == (6, 4, 4)
    (tmp_path / "9.jpg").unlink()
    with pytest.raises(Refused, match="missing_slice: slice 10 follows slice 8"):
        read_slices(find_slices(tmp_path))
