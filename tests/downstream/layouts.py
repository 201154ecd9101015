"""Tiny data sets in the official layouts, with the traps of spec/downstream."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from PIL import Image


def chest_hu(
    shape: tuple[int, int, int] = (20, 18, 12), seed: int = 0, lesion: bool = False
) -> np.ndarray:
    """int16 (X, Y, Z): air, a body with two lungs, noise; a dense box in one lung if asked."""
    generator = np.random.default_rng(seed)
    volume = np.full(shape, -1000.0)
    x, y, z = shape
    volume[2 : x - 2, 2 : y - 2] = 40
    volume[4 : x // 2 - 1, 5 : y - 5, 2 : z - 2] = -850
    volume[x // 2 + 1 : x - 4, 5 : y - 5, 2 : z - 2] = -850
    if lesion:
        volume[lesion_box(shape)] = 0
    return (volume + generator.normal(0, 15, shape)).astype(np.int16)


def lesion_box(shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    x, y, z = shape
    return slice(x // 2 + 1, x - 5), slice(6, y - 6), slice(3, z - 3)


def write_nifti(
    path: Path, volume: np.ndarray, spacing_mm: Sequence[float], orientation: str = "RAS"
) -> None:
    """``volume`` is RAS (X, Y, Z); stored in ``orientation``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume, np.diag([*spacing_mm, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"),
        nibabel.orientations.axcodes2ornt(tuple(orientation)),
    )
    nibabel.save(image.as_reoriented(turn), path)


def write_stoic(data: Path, num_cases: int = 8) -> None:
    """Cases with different spacing, one anisotropic, one short; then the bad rows: severe without
    COVID, a label 2, a row without volume; and a volume without row."""
    folder = data / "data" / "mha"
    folder.mkdir(parents=True)
    (data / "metadata").mkdir()
    rows = []
    for index in range(num_cases):
        covid, severe = index % 2, int(index in (3, 7))
        shape = (20, 18, 5) if index == 1 else (20, 18, 12)
        volume = chest_hu((shape[0], shape[1], max(shape[2], 8)), index, lesion=bool(covid))
        image = SimpleITK.GetImageFromArray(volume[:, :, : shape[2]].transpose())
        image.SetSpacing((9.0, 9.0, 15.0) if index == 0 else (7.0 + 0.1 * index, 7.0, 9.0))
        SimpleITK.WriteImage(image, str(folder / f"{100 + 7 * index}.mha"))
        rows.append((100 + 7 * index, covid, severe))
    bad = [(901, 0, 1), (902, 2, 0), (903, 1, 0), (904, 1, 1)]
    image = SimpleITK.GetImageFromArray(chest_hu().transpose())
    for number in (901, 902, 905):  # 903: no volume; 904: a broken one; 905: no row
        SimpleITK.WriteImage(image, str(folder / f"{number}.mha"))
    (folder / "904.mha").write_bytes(b"not an image")
    text = "".join(f"{p},{c},{s}\n" for p, c, s in rows + bad)
    (data / "metadata" / "reference.csv").write_text("PatientID,probCOVID,probSevere\n" + text)


def write_covid19_20(data: Path, num_cases: int = 6) -> None:
    """Pairs, every other stored LAS, one with a series suffix, one with an empty mask; a mask
    without image, an image without mask, a mask of another shape, and Validation without masks."""
    train = data / "Train"
    shape, spacing_mm = (24, 22, 12), (6.0, 6.0, 10.0)
    for index in range(num_cases):
        stem = f"volume-covid19-A-{3 + 5 * index:04d}" + ("_1" if index == 1 else "")
        has_lesion = index != 2
        mask = np.zeros(shape, np.uint8)
        if has_lesion:
            mask[lesion_box(shape)] = 1
        orientation = "LAS" if index % 2 else "RAS"
        volume = chest_hu(shape, index, lesion=has_lesion)
        write_nifti(train / f"{stem}_ct.nii.gz", volume, spacing_mm, orientation)
        write_nifti(train / f"{stem}_seg.nii.gz", mask, spacing_mm, orientation)
    write_nifti(train / "volume-covid19-A-0900_seg.nii.gz", mask, spacing_mm)
    write_nifti(train / "volume-covid19-A-0901_ct.nii.gz", volume, spacing_mm)
    write_nifti(train / "volume-covid19-A-0902_ct.nii.gz", volume, spacing_mm)
    write_nifti(train / "volume-covid19-A-0902_seg.nii.gz", mask[:-1], spacing_mm)
    write_nifti(data / "Validation" / "volume-covid19-A-0003_ct.nii.gz", volume, spacing_mm)


FINDINGS = ("A nodule in the right lung.", "Pleural effusion.", "Emphysema.", "Consolidation.")
LABELS = ("Lung nodule", "Pleural effusion", "Emphysema", "Consolidation")


def write_ct_rate(data: Path, num_train: int = 6, num_valid: int = 6) -> None:
    """Fixed volumes; in valid the first two scans have two reconstructions; then one listed as no
    chest, one whose report is not given, one without a row."""
    root = data / "dataset"
    for part, table, count in (("train", "train", num_train), ("valid", "validation", num_valid)):
        reports, labels = [], []
        names = [f"{part}_{n}_a_{r}" for n in range(1, count + 1) for r in (1, 2)
                 if r == 1 or (part == "valid" and n < 3)]  # fmt: skip
        extra = [f"{part}_90_a_1", f"{part}_91_a_1", f"{part}_92_a_1"] if part == "valid" else []
        for index, name in enumerate(names + extra):
            patient, scan = "_".join(name.split("_")[:2]), "_".join(name.split("_")[:3])
            path = root / f"{part}_fixed" / patient / scan / f"{name}.nii.gz"
            write_nifti(path, chest_hu(seed=index), (9.0, 9.0, 14.0))
            number = int(name.split("_")[1])
            text = FINDINGS[number % 4] + f" Case {number}."
            row = [name + ".nii.gz", "Not given.", "Not given.", text, "Not given."]
            if name.startswith("valid_91"):
                row = [row[0]] + ["Not given."] * 4
            if not name.startswith("valid_92"):
                reports.append(row)
            labels.append([row[0], *(str(int(number % 4 == n)) for n in range(4))])
        columns = ["VolumeName", "ClinicalInformation_EN", "Technique_EN"]
        _csv(
            root / "radiology_text_reports" / f"{table}_reports.csv",
            [[*columns, "Findings_EN", "Impressions_EN"], *reports],
        )
        _csv(
            root / "multi_abnormality_labels" / f"{part}_predicted_labels.csv",
            [["VolumeName", *LABELS], *labels],
        )
    (root / "metadata").mkdir()
    (root / "metadata" / "no_chest_valid.txt").write_text("valid_90_a_1.nii.gz\n")


def write_ct_rate_raw(data: Path, volume: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    """Version 1 beside nothing: raw values, rescale and spacing in the metadata only."""
    root = data / "dataset"
    for name, number in (("valid_1_a_1", 1), ("valid_2_a_1", 2)):
        path = root / "valid" / f"valid_{number}" / f"valid_{number}_a" / f"{name}.nii.gz"
        write_nifti(path, volume + 1024, (1.0, 1.0, 1.0))
    x, y, z = spacing_mm
    _csv(
        root / "metadata" / "validation_metadata.csv",
        [
            ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing"],
            ["valid_1_a_1.nii.gz", "1", "-1024", f'"[{x}, {y}]"', f"{z}"],
            ["valid_2_a_1.nii.gz", "1", "-1024", f'"[{x}, {y}]"', ""],
        ],
    )
    _csv(
        root / "radiology_text_reports" / "validation_reports.csv",
        [
            ["VolumeName", "Findings_EN", "Impressions_EN"],
            ["valid_1_a_1.nii.gz", "A nodule.", "Nodule."],
            ["valid_2_a_1.nii.gz", "A nodule.", "Nodule."],
        ],
    )


def write_ctrg(data: Path, num_cases: int = 10) -> None:
    """The official list: twelve slices named 1.jpg ... 12.jpg, growing brighter downwards; two
    studies with one text, one long report, one rare word, one report not given, one missing folder,
    one entry twice."""
    entries = []
    for index in range(num_cases):
        folder = f"Chest/{index:03d}"
        (data / folder).mkdir(parents=True)
        for number in range(1, 13):
            pixels = np.full((16, 20), 15 * number + index, np.uint8)
            pixels[4:12, 4:10] = 10 * (index % 5)
            Image.fromarray(pixels).save(data / folder / f"{number}.jpg", quality=95)
        text = f"{FINDINGS[index % 4]} No pneumothorax. Study {index}."
        if index == 1:
            text = entries[0]["report"]
        if index == 2:
            text += " The heart is normal in size." * 40
        if index == 3:
            text += " Dextrocardia is absent."
        entries.append({"image_path": folder, "report": text, "result": ""})
    entries += [
        {"image_path": "Chest/000", "report": "", "result": ""},
        {"image_path": "Chest/900", "report": "A nodule.", "result": ""},
        {"image_path": "Chest/901", "report": "Not given.", "result": ""},
    ]
    (data / "chest_ctrg_jpg.json").write_text(json.dumps(entries))


def write_ctrg_reference(data: Path, num_train: int = 20, val_equals_test: bool = True) -> None:
    """The reference's list of NIfTI files, whose val is its test (as published) or is not."""

    def entry(number: int, split: str) -> dict[str, str]:
        path = f"./Chest_New_nitfy_2/{number}.nii.gz"
        write_nifti(data / path, chest_hu(seed=number), (9.0, 9.0, 14.0))
        report = f"{FINDINGS[number % 4]} Number {number}."
        return {"id": f"{number}.nii.gz", "report": report, "image_path": path, "split": split}

    parts = {
        "train": [entry(number, "train") for number in range(num_train)],
        "val": [entry(910 if val_equals_test else 920, "val")],
        "test": [entry(910, "test")],
    }
    (data / "chest_ctrg_nitfy_ori_split.json").write_text(json.dumps(parts))


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(row) + "\n" for row in rows))
