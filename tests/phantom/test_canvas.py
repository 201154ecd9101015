import numpy as np
import pytest

from mg3d.phantom.canvas import Canvas, Grid, dot, moving_average, rotation
from mg3d.phantom.draws import Draws

GRID = Grid((10, 20, 30), (5.0, 3.0, 2.0), (-29.0, -28.5, -22.5))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rotation_is_orthonormal_and_right_handed(axis: int) -> None:
    matrix = np.array(rotation(0.1, axis))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    # tan(angle / 2) = 0.1
    assert matrix.trace() == pytest.approx(1 + 2 * np.cos(2 * np.arctan(0.1)))


@pytest.mark.parametrize("tilt", [0.0, 0.07])
def test_coordinates_agree_with_positions(tilt: float) -> None:
    right, down, up = rotation(tilt, 0) if tilt else (GRID.right, GRID.down, GRID.up)
    grid = Grid(GRID.shape, GRID.spacing_mm, GRID.origin_mm, right, down, up)
    assert grid.is_oblique == (tilt > 0)
    x, y, z = (np.broadcast_to(array, grid.shape) for array in grid.coordinates())
    for index in ((0, 0, 0), (9, 19, 29), (3, 7, 11)):
        found = (x[index], y[index], z[index])
        assert found == pytest.approx(grid.position(index))


def test_ball_has_the_volume_of_a_ball() -> None:
    canvas = Canvas(GRID)
    canvas.draw_ball((0.0, 0.0, 0.0), 12.0, 0)
    filled = (canvas.hu.astype(float) + 1000).sum() / 1000 * 5.0 * 3.0 * 2.0
    assert filled == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.05)


@pytest.mark.parametrize("tilt", [0.0, 0.1])
def test_box_contains_the_shape(tilt: float) -> None:
    """Painting in a box equals painting everywhere."""
    right, down, up = rotation(tilt, 2) if tilt else (GRID.right, GRID.down, GRID.up)
    grid = Grid(GRID.shape, GRID.spacing_mm, GRID.origin_mm, right, down, up)
    canvas = Canvas(grid)
    start, end = (-15.0, -10.0, -12.0), (11.0, 14.0, 9.0)
    box, distance = canvas.tube(start, end, 6.0)
    inside = np.zeros(grid.shape, bool)
    inside[box] = distance <= 6.0
    x, y, z = canvas.x, canvas.y, canvas.z
    points = np.stack(np.broadcast_arrays(x, y, z), -1)
    along = np.subtract(end, start)
    t = np.clip((points - start) @ along / dot(tuple(along), tuple(along)), 0, 1)
    expected = np.linalg.norm(points - start - t[..., None] * along, axis=-1) <= 6.0
    assert expected.sum() > 50
    np.testing.assert_array_equal(inside, expected)


def test_a_shape_outside_paints_nothing() -> None:
    canvas = Canvas(GRID)
    canvas.draw_ball((500.0, 0.0, 0.0), 5.0, 100)
    canvas.draw_tube((0.0, 300.0, 0.0), (0.0, 320.0, 0.0), 5.0, 100)
    assert (canvas.hu == -1000).all()


def test_moving_average() -> None:
    values = np.array([[1, 2, 3, 10]], dtype=np.int32)
    assert moving_average(values, 2, 1).tolist() == [[1, 2, 6]]
    assert moving_average(values, 4, 1).tolist() == [[4]]
    np.testing.assert_array_equal(moving_average(values, 1, 1), values)


def test_texture_is_balanced_and_has_the_grid_shape() -> None:
    field = Canvas(GRID).texture(Draws(0, "t"), 7.0)
    assert field.shape == GRID.shape
    assert 0 <= field.min() < 128 < field.max() <= 255
