import nibabel
import numpy as np
import pytest

from mg3d.finetuning.network_grid import network_grid, to_file_order
from mg3d.metrics.segmentation import overlap

SPACING_MM = (4.0, 3.0, 3.0)


def ball(shape: tuple[int, int, int], affine: np.ndarray, radius_mm: float) -> np.ndarray:
    """A ball off the centre, in file voxels."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    centre = (np.array(shape) - 1) / 2
    where = (index - centre) @ affine[:3, :3].T - np.array([10.0, -6.0, 4.0])
    return np.linalg.norm(where, axis=-1) < radius_mm


def affines() -> list[np.ndarray]:
    """RAS, LAS, axes permuted (SRA), and oblique by 20 degrees."""
    ras = np.diag([2.0, 2.5, 5.0, 1.0])
    las = np.diag([-2.0, 2.5, 5.0, 1.0])
    permuted = np.eye(4)
    permuted[:3, :3] = np.array([[0, 2.5, 0], [0, 0, 5.0], [2.0, 0, 0]])
    angle = np.deg2rad(20)
    oblique = np.eye(4)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    oblique[:3, :3] = turn @ np.diag([2.0, 2.5, 5.0])
    for affine in (ras, las, permuted, oblique):
        affine[:3, 3] = [-30.0, 12.0, 400.0]
    return [ras, las, permuted, oblique]


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (None, 3.0, 3.0)], ids=["all", "in plane"])
@pytest.mark.parametrize("affine", affines(), ids=["RAS", "LAS", "SRA", "oblique"])
def test_there_and_back_is_the_same_place(
    affine: np.ndarray, spacing_mm: tuple[float | None, float, float]
) -> None:
    shape = (40, 36, 24)
    mask = ball(shape, affine, 18.0)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), affine))
    grid = network_grid(image.shape, image.affine, spacing_mm)
    classes = grid.classes_from_image(np.asarray(image.dataobj), 1)
    probabilities = np.stack([classes == 0, classes == 1]).astype(np.float32)
    back = to_file_order(grid.classes_to_image(probabilities), affine)
    assert back.shape == shape
    own_mm = np.linalg.norm(affine[:3, :3], axis=0)
    assert overlap(back > 0, mask, tuple(own_mm)).dice > 0.93


@pytest.mark.parametrize("affine", affines(), ids=["RAS", "LAS", "SRA", "oblique"])
def test_a_cube_of_known_size_has_its_voxels(affine: np.ndarray) -> None:
    """A ball of 18 mm holds as many millilitres on the grid as it should."""
    mask = ball((40, 36, 24), affine, 18.0)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), affine))
    grid = network_grid(image.shape, image.affine, SPACING_MM)
    voxels = int(grid.classes_from_image(np.asarray(image.dataobj), 1).sum())
    assert voxels * 36.0 == pytest.approx(4 / 3 * np.pi * 18.0**3, rel=0.06)


def test_grid_holds_the_whole_volume() -> None:
    for affine in affines():
        grid = network_grid((40, 36, 24), affine, SPACING_MM)
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in (40, 36, 24)])).reshape(3, -1)
        extent = np.ptp(affine[:3, :3] @ corners, axis=1)[::-1]
        assert (np.array(grid.num_inside) * SPACING_MM >= extent - 1e-6).all()
        on_grid = np.linalg.inv(grid.matrix) @ (corners - grid.offset[:, None])
        assert (on_grid > -0.5 - 1e-6).all()
        assert (on_grid.max(axis=1) < np.array(grid.shape_voxels[::-1]) - 0.5 + 1e-6).all()
        assert all(size % 32 == 0 for size in grid.shape_voxels)


@pytest.mark.parametrize("num_slices", [7, 10, 33])
def test_slices_stay_as_they_are(num_slices: int) -> None:
    """Odd or even padding: plane k of the grid is slice k - num_before, unmixed, and the way back
    returns it."""
    image = np.zeros((32, 32, num_slices), np.int16)
    image[:] = 100 * np.arange(1, num_slices + 1)
    grid = network_grid(image.shape, np.diag([1.5, 1.5, 8.0, 1.0]), (None, 1.5, 1.5))
    assert grid.shape_voxels == (32 * -(-num_slices // 32), 32, 32)
    assert grid.padding_fraction == pytest.approx(1 - num_slices / grid.shape_voxels[0])
    volume = grid.from_image(image, 0)
    assert (volume[grid.inside] == 100 * np.arange(1, num_slices + 1)[:, None, None]).all()
    assert volume.sum() == image.sum()
    np.testing.assert_array_equal(grid.to_image(volume), image)


def test_the_likeliest_class_wins_and_ties_are_background() -> None:
    grid = network_grid((32, 32, 32), np.eye(4), (1.0, 1.0, 1.0))
    probabilities = np.zeros((3, 32, 32, 32), np.float32)
    probabilities[0] = 0.4
    probabilities[1, 0] = 0.35
    probabilities[2, 0] = 0.25
    probabilities[1, 1] = 0.4
    probabilities[1, 2], probabilities[2, 2] = 0.45, 0.5
    classes = grid.classes_to_image(probabilities)
    assert [int(classes[5, 5, z]) for z in range(4)] == [0, 0, 2, 0]
