"""CT-RATE in its official layout: both versions, every trap of its metadata, its reports."""

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from data.converters import reasons
from mg3d.data.conversion import convert_volumes
from mg3d.data.identity import pseudonym
from mg3d.data.reports import clean_reports
from mg3d.params import CleanReports, ConvertVolumes, CtRateReports, CtRateVolumes

STAGE = ConvertVolumes(num_workers=1)
SPACING = (2.0, 3.0, 5.0)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3.0, 0, 20], [0, 0, 5.0, -30], [0, 0, 0, 1]])
ROW = {
    "XYSpacing": "[2.0, 3.0]",
    "ZSpacing": "5.0",
    "RescaleSlope": "1",
    "RescaleIntercept": "-1024",
    "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
    "NumberofSlices": "6",
}


def chest(seed: int = 0, slices: int = 6) -> np.ndarray:
    """HU (columns, rows, slices): air, tissue, and a voxel that tells the directions."""
    hu = np.random.default_rng(seed).integers(-900, -700, (8, 10, slices), np.int16)
    hu[:4] = np.random.default_rng(seed + 1).integers(-50, 100, (4, 10, slices))
    hu[0, 0, 0] = 900
    return hu


class Dataset:
    """Writes ``dataset/`` file by file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[dict[str, str]] = []

    def add(
        self,
        name: str,
        voxels: np.ndarray,
        affine: np.ndarray = AFFINE,
        folder: str = "train_fixed",
        row: dict[str, str] | None = None,
    ) -> Path:
        patient, scan = "_".join(name.split("_")[:2]), name.rpartition("_")[0]
        path = self.root / folder / patient / scan / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
        if row is not None:
            self.rows.append({"VolumeName": f"{name}.nii.gz", **ROW, **row})
        return path

    def convert(self, out: Path, **settings: object) -> dict[str, int]:
        """Files per reason."""
        if self.rows:
            (self.root / "metadata").mkdir(parents=True, exist_ok=True)
            with (self.root / "metadata/train_metadata.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, ["VolumeName", *ROW])
                table.writeheader()
                table.writerows(self.rows)
        convert_volumes(CtRateVolumes(path=self.root, **settings), out, STAGE)
        return reasons(out)

    def volume(self, out: Path, scan: str) -> nibabel.Nifti1Image:
        (path,) = (out / "nifti").glob(f"{pseudonym('study', f'ct_rate/{scan}')}-*.nii.gz")
        return nibabel.load(path)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "dataset")


@pytest.mark.parametrize("header", ["identity", "spacing", "none"])
def test_both_versions_of_a_volume_agree(header: str, dataset: Dataset, tmp_path: Path) -> None:
    """Version 1 holds stored values, and a header with no directions, with them, or blank."""
    hu = chest()
    stored = ((hu.astype(float) + 1000) / 2).round()
    hu = (stored * 2 - 1000).astype(np.int16)  # as slope 2 can say it
    dataset.add("train_1_a_1", hu, row={})
    affine = {"identity": np.eye(4), "spacing": np.diag([-1.0, -1, 1, 1]), "none": np.eye(4)}
    scaling = {"RescaleSlope": "2", "RescaleIntercept": "-1000"}
    path = dataset.add("train_2_a_1", stored.astype(np.int16), affine[header], "train", scaling)
    if header == "none":
        image = nibabel.load(path)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        blank = nibabel.Nifti1Image(stored.astype(np.int16), None, image.header)
        nibabel.save(blank, path)
    assert dataset.convert(tmp_path / "out") == {"used": 2}
    fixed, raw = (dataset.volume(tmp_path / "out", f"train_{n}_a") for n in (1, 2))
    np.testing.assert_array_equal(np.asanyarray(raw.dataobj), np.asanyarray(fixed.dataobj))
    np.testing.assert_allclose(raw.affine[:3, :3], np.diag(SPACING))
    np.testing.assert_allclose(fixed.affine[:3, :3], np.diag(SPACING))
    # The marked voxel was rightmost and foremost of the lowest slice: LPS begins there.
    assert np.asanyarray(fixed.dataobj)[-1, -1, 0] == hu[0, 0, 0] > 800


def test_a_rescale_is_made_once(dataset: Dataset, tmp_path: Path) -> None:
    """Version 2 under version 1's name, version 1 under version 2's, and good ones beside."""
    stored = chest() + 1024
    dataset.add("train_1_a_1", chest(), folder="train", row={})
    dataset.add("train_2_a_1", stored, row={})
    dataset.add("train_3_a_1", chest(), row={})
    dataset.add("train_4_a_1", stored, np.eye(4), "train", {})
    assert dataset.convert(tmp_path / "out") == {"used": 2, "not_hu": 2}
    details = (tmp_path / "out/ledger.jsonl").read_text()
    assert "a rescale would count twice" in details
    assert "stored values, never rescaled" in details


def test_what_the_data_set_says_against_a_volume(dataset: Dataset, tmp_path: Path) -> None:
    good = chest()
    dataset.add("train_1_a_1", good)
    dataset.add("train_2_a_1", good)
    dataset.add("train_11755_a_3", good)
    dataset.add("train_3_a_1", good + 1024, folder="train", row={"ZSpacing": ""})
    dataset.add("train_4_a_1", good + 1024, folder="train")
    dataset.add("train_5_a_1", good + 1024, folder="train", row={"XYSpacing": "0.7"})
    dataset.add("train_1_a_1", good + 1024, folder="train")  # version 1 of what is there
    broken = dataset.add("train_6_a_1", good)
    broken.write_bytes(broken.read_bytes()[:-200])
    (broken.parent / "._train_6_a_1.nii.gz").write_bytes(b"\0")
    dataset.add("valid_1_a_1", good, folder="valid_fixed")  # not for training: not even counted
    (dataset.root / "metadata").mkdir()
    (dataset.root / "metadata/no_chest_train.txt").write_text("train_2_a_1.nii.gz\n")
    assert dataset.convert(tmp_path / "out") == {
        "used": 1,
        "no_chest": 1,
        "known_bad": 1,
        "missing_tag": 3,
        "not_chosen": 1,
        "truncated": 1,
        "stray_file": 1,
    }


@pytest.mark.parametrize(("setting", "used"), [("one", 2), ("all", 3)])
def test_reconstructions_of_a_scan(
    setting: str, used: int, dataset: Dataset, tmp_path: Path
) -> None:
    dataset.add("train_1_a_1", chest(1), row={})
    dataset.add("train_1_a_2", chest(2, slices=9), row={"NumberofSlices": "9"})
    dataset.add("train_1_b_1", chest(3), row={})
    found = dataset.convert(tmp_path / "out", reconstructions=setting)
    assert found == {"used": used} | ({"not_chosen": 1} if setting == "one" else {})
    manifest = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert set(manifest["patient_id"]) == {pseudonym("patient", "ct_rate/train_1")}
    if setting == "one":
        scan = manifest.set_index("study_id").loc[pseudonym("study", "ct_rate/train_1_a")]
        assert scan["num_slices"] == 9
        assert scan["accession_id"] == pseudonym("accession", "ct_rate/train_1_a_2")


def test_the_next_reconstruction_stands_in(dataset: Dataset, tmp_path: Path) -> None:
    first = dataset.add("train_1_a_1", chest(1))
    dataset.add("train_1_a_2", chest(2))
    first.write_bytes(gzip.compress(b"no volume"))
    assert dataset.convert(tmp_path / "out") == {"used": 1, "unreadable": 1}


def test_reports_join_by_volume_and_keep_two_sections(tmp_path: Path) -> None:
    columns = ["VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN"]
    with (tmp_path / "train_reports.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*columns, "Impressions_EN"])
        text = ["Cough.", "Non-contrast CT.", "The lungs are clear. Heart is normal."]
        rows.writerow(["train_1_a_1.nii.gz", *text, "Normal chest."])
        rows.writerow(["train_1_a_2.nii.gz", *text, "Normal chest."])
        rows.writerow(["train_2_a_1.nii.gz", "Not given.", "", text[2], "Not given."])
        rows.writerow(["train_3_a_1.nii.gz", *["Not given."] * 4])
    out = tmp_path / "out"
    ledger = clean_reports(CtRateReports(path=tmp_path), out, CleanReports())
    assert ledger.summary()["reasons"] == {"report_not_given": 1}
    table = pd.read_parquet(out / "reports.parquet").set_index("accession_id")
    first, second = (
        table.loc[pseudonym("accession", f"ct_rate/{name}")]
        for name in ("train_1_a_1", "train_2_a_1")
    )
    assert (first["findings"], first["impression"]) == (text[2], "Normal chest.")
    assert (second["findings"], second["impression"]) == (text[2], "")
    assert table["text_group"].value_counts().tolist() == [2, 1]


def test_mistakes_name_the_remedy(tmp_path: Path, write_series: Callable) -> None:
    with pytest.raises(ValueError, match=r"neither train_fixed/ nor train/ .* dataset/"):
        convert_volumes(CtRateVolumes(path=tmp_path), tmp_path / "out", STAGE)
    with pytest.raises(ValueError, match=r"no .*train_reports.csv: CT-RATE has it in"):
        clean_reports(CtRateReports(path=tmp_path), tmp_path / "out", CleanReports())
    (tmp_path / "train_reports.csv").write_text("VolumeName,Findings\n")
    with pytest.raises(ValueError, match=r"lacks \['ClinicalInformation_EN', .*take the file"):
        clean_reports(CtRateReports(path=tmp_path), tmp_path / "out", CleanReports())
