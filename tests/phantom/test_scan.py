"""Anatomy, findings and acquisition: the right HU on the right side."""

import numpy as np
import pytest

from mg3d.phantom.anatomy import SIGN, draw_anatomy
from mg3d.phantom.canvas import Canvas
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import CATALOGUE, Finding, draw_finding, draw_findings, kinds_of
from mg3d.phantom.painting import LOBE_CENTRES, PAINTERS, deform, lobe_region
from mg3d.phantom.scan import Scan, acquire, draw_grid

SHAPE = (32, 64, 64)


def scan(*findings: Finding, seed: int = 0, kernel: str = "soft", oblique: bool = False) -> Scan:
    draws = Draws(seed, "test")
    anatomy = draw_anatomy(draws.child("anatomy"))
    grid = draw_grid(anatomy, SHAPE, draws.child("grid"), oblique)
    return acquire(anatomy, findings, grid, draws.child("scan"), kernel)


def world(grid_scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, z = (np.broadcast_to(a, SHAPE) for a in grid_scan.grid.coordinates())
    return x, y, z


@pytest.mark.parametrize("seed", range(4))
def test_physical_size_and_hu_of_a_healthy_chest(seed: int) -> None:
    healthy = scan(seed=seed)
    dz, dy, dx = healthy.grid.spacing_mm
    body = healthy.hu > -250
    middle = body[SHAPE[0] // 2]
    assert 280 <= middle.any(0).sum() * dx <= 390
    assert 180 <= middle.any(1).sum() * dy <= 290
    assert 230 <= SHAPE[0] * dz <= 340
    draws = Draws(seed, "test")
    anatomy = draw_anatomy(draws.child("anatomy"))
    x, y, z = world(healthy)
    centre = {
        side: (np.abs(x - SIGN[side] * 0.5 * anatomy.half_width_mm) < 25)
        & (np.abs(y) < 25)
        & (np.abs(z) < 30)
        for side in SIGN
    }
    for side in SIGN:
        assert -950 < np.median(healthy.hu[centre[side]]) < -780
    heart, _ = anatomy.heart
    inside = (abs(x - heart[0]) < 20) & (abs(y - heart[1]) < 20) & (abs(z - heart[2]) < 20)
    assert 20 < healthy.hu[inside].mean() < 65
    # Liver right, stomach left, below the domes.
    low = z < -1.1 * anatomy.half_height_mm
    right_low = low & (abs(x + 0.45 * anatomy.half_width_mm) < 20) & (abs(y) < 20)
    assert 40 < healthy.hu[right_low].mean() < 75
    assert healthy.hu.min() >= -1024
    assert healthy.hu.max() > 300  # bone


def test_the_heart_lies_left_and_the_liver_right() -> None:
    anatomy = draw_anatomy(Draws(0, "a"))
    assert anatomy.heart[0][0] > 0
    assert anatomy.along("left", 0.5, 0, 0)[0] > 0 > anatomy.along("right", 0.5, 0, 0)[0]


SIDED = [kind for kind, rule in CATALOGUE.items() if "left" in rule.sides and kind != "scoliosis"]


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("kind", SIDED)
@pytest.mark.parametrize("side", ["right", "left"])
def test_sided_findings_are_on_their_side(kind: str, side: str, oblique: bool) -> None:
    """Left is +x in LPS (DICOM PS3.3 C.7.6.2.1.1)."""
    draws = Draws(0, "sided", kind)
    drawn = draw_finding(kind, draws)
    location = "6" if kind == "rib_fracture" else ("lower lobe" if drawn.location else "")
    size = (24, 22) if kind == "nodule" else drawn.size_mm
    finding = Finding(kind, side, location, size, drawn.severity)
    with_it, without = scan(finding, oblique=oblique), scan(oblique=oblique)
    change = np.abs(with_it.hu.astype(int) - without.hu) > 150
    x, _, _ = world(with_it)
    assert change.sum() >= (3 if kind in ("nodule", "rib_fracture") else 60)
    assert (np.sign(x[change]) == SIGN[side]).mean() > 0.97


@pytest.mark.parametrize("kind", [kind for kind in CATALOGUE if kind != "steatosis"])
def test_every_finding_changes_voxels(kind: str) -> None:
    finding = draw_finding(kind, Draws(1, "any", kind))
    change = np.abs(scan(finding, seed=1).hu.astype(int) - scan(seed=1).hu) > 60
    assert change.sum() >= 3


def test_steatosis_darkens_the_liver_below_the_spleen() -> None:
    change = scan(Finding("steatosis", severity=1)).hu.astype(int) - scan().hu
    x, _, _ = world(scan())
    assert (change < -50).sum() > 500
    assert (x[change < -50] < 0).mean() > 0.75


@pytest.mark.parametrize("kind", ["pleural_effusion", "cardiomegaly", "ground_glass"])
def test_severity_grows_with_the_grade(kind: str) -> None:
    side = "both" if "both" in CATALOGUE[kind].sides else ""
    healthy = scan().hu.astype(int)
    changed = [
        (np.abs(scan(Finding(kind, side, severity=grade)).hu - healthy) > 100).sum()
        for grade in range(3)
    ]
    assert changed[0] < changed[1] < changed[2]


def test_effusion_is_dependent_fluid() -> None:
    """The patient lies on the back: fluid collects at +y and towards the feet."""
    sick = scan(Finding("pleural_effusion", "left", severity=1))
    change = (sick.hu.astype(int) - scan().hu) > 300
    _, y, z = world(sick)
    assert y[change].mean() > 0 > z[change].mean()
    assert -10 < sick.hu[change].mean() < 40


def test_scoliosis_bends_to_its_side() -> None:
    anatomy = draw_anatomy(Draws(0, "a"))
    assert deform(anatomy, [Finding("scoliosis", "left")]).spine_bend_mm > 0
    assert deform(anatomy, [Finding("scoliosis", "right")]).spine_bend_mm < 0


def test_nodule_has_its_size_and_place() -> None:
    finding = Finding("nodule", "right", "upper lobe", (22, 20))
    sick, healthy = scan(finding, kernel="sharp"), scan(kernel="sharp")
    change = (sick.hu.astype(int) - healthy.hu) / 900
    dz, dy, dx = sick.grid.spacing_mm
    volume = change[np.abs(change) > 0.1].sum() * dz * dy * dx
    assert volume == pytest.approx(np.pi / 6 * 21**3, rel=0.4)
    _, _, z = world(sick)
    assert z[change > 0.5].mean() > 0  # upper lobe
    assert LOBE_CENTRES["upper lobe"][2] > LOBE_CENTRES["lower lobe"][2]


def test_lobes_divide_each_lung() -> None:
    draws = Draws(0, "lobes")
    anatomy = draw_anatomy(draws)
    canvas = Canvas(draw_grid(anatomy, SHAPE, draws))
    canvas.lung = {side: np.ones(SHAPE, bool) for side in SIGN}
    names = {
        "right": ("upper lobe", "middle lobe", "lower lobe"),
        "left": ("upper lobe", "lower lobe"),
    }
    for side, lobes in names.items():
        parts = np.stack([lobe_region(canvas, anatomy, side, lobe) for lobe in lobes])
        np.testing.assert_array_equal(parts.sum(0), 1)


def test_lesion_mask_marks_opacity_in_the_lung() -> None:
    findings = (
        Finding("ground_glass", "both", severity=1),
        Finding("consolidation", "left", "lower lobe"),
    )
    sick, healthy = scan(*findings), scan()
    assert not healthy.lesion.any()
    change = sick.hu.astype(int) - healthy.hu
    assert (change[sick.lesion] > 100).mean() > 0.9
    assert np.abs(change[~sick.lesion]).mean() < 15


def test_noise_is_centred_and_the_sharp_kernel_is_noisier() -> None:
    air = {}
    for kernel in ("soft", "sharp"):
        volume = scan(kernel=kernel)
        x, y, _ = world(volume)
        corner = volume.hu[(x < x.min() + 20) & (y < y.min() + 15)].astype(float)
        air[kernel] = corner.std()
        assert -1005 < corner.mean() < -990
    assert air["soft"] < air["sharp"]


def test_findings_are_diverse_and_every_kind_occurs() -> None:
    studies = [draw_findings(Draws(0, "diverse", n)) for n in range(300)]
    assert len({kinds_of(study) for study in studies}) > 240
    assert set().union(*map(kinds_of, studies)) == set(CATALOGUE) == set(PAINTERS)
    assert 0.01 < sum(not study for study in studies) / 300 < 0.12
    for kind in ("pleural_effusion", "cardiomegaly", "consolidation", "ground_glass"):
        assert 0.2 < sum(kind in kinds_of(study) for study in studies) / 300 < 0.45
