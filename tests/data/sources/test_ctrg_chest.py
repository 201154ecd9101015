"""CTRG-Chest in its official layout: slices without millimetres, and their list of reports."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.converters import reasons
from mg3d.data.conversion import convert_volumes
from mg3d.data.identity import pseudonym
from mg3d.data.nifti import RefusedNifti, load_nifti
from mg3d.data.reports import clean_reports
from mg3d.params import CleanReports, ConvertVolumes, CtrgReports, CtrgVolumes

STAGE = ConvertVolumes(num_workers=1, min_lung_mm=60.0)
WHOLE = (1.0, 1.0, 1.0)


def write_slices(folder: Path, greys: list[int], size: tuple[int, int] = (16, 24)) -> None:
    """``1.jpg``, ``2.jpg``, ... of one grey each, which JPEG keeps to within one."""
    folder.mkdir(parents=True)
    for number, grey in enumerate(greys, 1):
        Image.fromarray(np.full(size, grey, np.uint8)).save(folder / f"{number}.jpg", quality=95)


def test_slices_are_read_in_natural_order_from_the_head_down(tmp_path: Path) -> None:
    greys = [10 * number for number in range(12)]  # 10.jpg comes before 2.jpg in a listing
    write_slices(tmp_path / "in/Chest_CTRG_JPG/0001", greys)
    source = CtrgVolumes(path=tmp_path / "in", window_hu=(-1000, 550), crop_fractions=WHOLE)
    convert_volumes(source, tmp_path / "out", STAGE)
    (row,) = pd.read_parquet(tmp_path / "out/manifest.parquet").to_dict("records")
    assert np.isnan([row[f"spacing_{axis}_mm"] for axis in "xyz"]).all()
    assert row["accession_id"] == pseudonym("accession", "ctrg_chest/Chest_CTRG_JPG/0001")
    path = tmp_path / "out/nifti" / row["nifti"]
    volume = np.asanyarray(nibabel.load(path).dataobj)
    assert volume.shape == (24, 16, 12)
    # By hand: grey g of 255 is -1000 + 1550 g / 255; the last slice is the lowest.
    expected = [-1000 + 1550 * grey / 255 for grey in reversed(greys)]
    np.testing.assert_allclose(volume[12, 8], expected, atol=7)
    with pytest.raises(RefusedNifti, match="no_affine"):  # nobody takes it for millimetres
        load_nifti(path)


def test_the_crop_keeps_the_middle(tmp_path: Path) -> None:
    write_slices(tmp_path / "in/1", list(range(0, 200, 10)))
    source = CtrgVolumes(path=tmp_path / "in", crop_fractions=(0.5, 0.75, 0.25))
    convert_volumes(source, tmp_path / "out", STAGE)
    (file,) = (tmp_path / "out/nifti").glob("*.nii.gz")
    volume = np.asanyarray(nibabel.load(file).dataobj)
    assert volume.shape == (6, 12, 10)
    # Slices 6 to 15 of 20, from the lowest: greys 140 down to 50.
    assert volume[0, 0, 0] == pytest.approx(-1000 + 2000 * 140 / 255, abs=9)
    assert volume[0, 0, -1] == pytest.approx(-1000 + 2000 * 50 / 255, abs=9)


def test_every_bad_folder_ends_in_the_ledger(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("good", "gap", "broken", "sizes"):
        write_slices(root / name, [0, 80, 160])
    (root / "gap/2.jpg").unlink()
    (root / "broken/2.jpg").write_bytes((root / "broken/2.jpg").read_bytes()[:150])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "sizes/4.jpg")
    (root / "good/._1.jpg").write_bytes(b"\0\5\x16\7")
    (root / "good/Thumbs.db").write_bytes(b"thumbs")
    convert_volumes(CtrgVolumes(path=root), tmp_path / "out", STAGE)
    assert reasons(tmp_path / "out") == {
        "used": 3,
        "missing_slice": 2,
        "undecodable": 3,
        "mixed_geometry": 4,
        "stray_file": 2,
    }
    assert sum(reasons(tmp_path / "out").values()) == sum(p.is_file() for p in root.rglob("*"))


def test_reports(tmp_path: Path) -> None:
    findings = "The lungs are clear, no nodules seen."
    entries = [
        {"image_path": "./Chest/0001", "report": findings, "result": "Normal chest."},
        {"image_path": "Chest/0002", "report": "", "result": None},
        {"report": "of nothing"},
    ]
    path = tmp_path / "chest_ctrg_jpg.json"
    path.write_text(json.dumps(entries))
    ledger = clean_reports(CtrgReports(path=path), tmp_path / "out", CleanReports())
    assert ledger.summary()["reasons"] == {"empty_report": 1, "unreadable": 1}
    (row,) = pd.read_parquet(tmp_path / "out/reports.parquet").to_dict("records")
    assert (row["findings"], row["impression"]) == (findings, "Normal chest.")
    assert row["accession_id"] == pseudonym("accession", "ctrg_chest/Chest/0001")


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder of JPG slices under .*datasets.md"):
        convert_volumes(CtrgVolumes(path=tmp_path), tmp_path / "out", STAGE)
    reports = CtrgReports(path=tmp_path / "list.json")
    with pytest.raises(ValueError, match=r"no .*list.json: CTRG-Chest ships it"):
        clean_reports(reports, tmp_path / "out", CleanReports())
    reports.path.write_text("{}")
    with pytest.raises(ValueError, match=r"list.json is no list"):
        clean_reports(reports, tmp_path / "out", CleanReports())
