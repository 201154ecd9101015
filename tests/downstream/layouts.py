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


def write_cc_ccii(data: Path, num_patients: int = 6) -> None:
    """Three classes, JPG named 1.jpg ... 12.jpg and PNG named 0000.png ..., every third patient
    with two scans; a brighter box in CP on one side, in NCP on both; then the traps: a known-bad
    scan, a patient under two classes, a scan unpacked in part, one of the list that is not there,
    hidden twins, the archives themselves."""
    rows = []

    def scan(label: str, patient: int, number: int, seed: int, count: int = 12) -> None:
        folder = data / label / str(patient) / str(number)
        folder.mkdir(parents=True)
        generator = np.random.default_rng(seed)
        for place in range(count):
            pixels = np.full((16, 20), 20, np.uint8)
            pixels[3:13, 3:17] = 150
            pixels[5:11, 4:9] = 230 if label == "NCP" else 60
            pixels[5:11, 11:16] = 60 if label == "Normal" else 230
            pixels += generator.integers(0, 10, pixels.shape, dtype=np.uint8)
            name = f"{place:04d}.png" if seed % 2 else f"{place + 1}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=100)  # less leaks into the corners
        (folder / ("._0003.png" if seed % 2 else "._3.jpg")).write_bytes(b"not an image")
        archive = "COVID19-1" if label == "NCP" and patient % 2 else f"{label}-2"
        rows.append((f"{archive}.zip", label, patient, number, count))

    for index in range(num_patients):
        for n in range(2 if index % 3 == 0 else 1):
            scan(
                ("Normal", "CP", "NCP")[index % 3], 100 + index, 500 + 2 * index + n, 2 * index + n
            )
    scan("NCP", 328, 1805, 90)
    scan("CP", 700, 900, 91)
    scan("NCP", 700, 901, 92)
    scan("Normal", 701, 902, 93, count=5)
    rows[-1] = (*rows[-1][:4], 12)
    rows.append(("Normal-1.zip", "Normal", 702, 903, 12))
    for archive in ("COVID19-1.zip", "NCP-2.zip"):
        (data / archive).write_bytes(b"PK")
    columns = ["zip_file", "label", "patient_id", "scan_id", "n_slice"]
    _csv(data / "unzip_filenames.csv", [columns, *(list(map(str, row)) for row in rows)])


def write_luna16(data: Path, num_scans: int = 10) -> None:
    """Scans with a bright ball at a known place, every other with flipped directions; candidates at
    the ball, at the border and in the other lung, one at an excluded finding (diameter -1). Traps:
    a .raw that is cut short, a series in two subsets, a class of 2, candidates without volume, a
    lung mask, a hidden twin, the superseded list."""
    tables: dict[str, list[list[str]]] = {"annotations": [], "excluded": [], "candidates": []}
    columns = ["seriesuid", "coordX", "coordY", "coordZ"]

    def add(table: str, uid: str, place: Sequence[float], last: object) -> None:
        tables[table].append([uid, *(f"{value:.3f}" for value in place), str(last)])

    def scan(uid: str, subset: int, index: int) -> None:
        shape = (40, 36, 20)
        volume = chest_hu(shape, index).astype(float)
        centre = np.array([29, 16, 8 + index % 4])
        spacing = np.array([4.0, 4.0, 6.0])
        apart = np.linalg.norm((np.indices(shape).reshape(3, -1).T - centre) * spacing, axis=1)
        volume.reshape(-1)[apart < 10] = 60
        sign = -1 if index % 2 else 1
        image = SimpleITK.GetImageFromArray(
            volume[::sign, ::sign].transpose().round().astype(np.int16)
        )
        image.SetSpacing(spacing.tolist())
        image.SetDirection((float(sign), 0, 0, 0, float(sign), 0, 0, 0, 1))
        last = (np.array(shape) - 1) * spacing * [1, 1, 0]
        image.SetOrigin((last if sign < 0 else np.zeros(3)).tolist())
        (data / f"subset{subset}").mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(image, str(data / f"subset{subset}" / f"{uid}.mhd"))
        ball = centre * spacing
        add("annotations", uid, ball, 20)
        add("candidates", uid, ball + 1, 1)
        add("candidates", uid, (0, 0, 0), 0)
        add("excluded", uid, ball + np.array([0, 40, 0]), -1.0)
        add("candidates", uid, ball + np.array([0, 42, 0]), 0)
        for place in ((6, 16, 9), (9, 14, 6), (14, 20, 12), (11, 18, 5)):
            add("candidates", uid, np.array(place) * spacing, 0)

    for index in range(num_scans):
        scan(f"1.2.{index}", index % 10, index)
    (data / "subset0" / "._1.2.0.mhd").write_bytes(b"not an image")
    cut = data / "subset3" / "1.2.3.raw"
    cut.write_bytes(cut.read_bytes()[:100])
    scan("1.9.1", 1, 91)
    scan("1.9.1", 2, 91)
    scan("1.9.2", 1, 92)
    add("candidates", "1.9.2", (0, 0, 0), 2)
    add("candidates", "1.9.3", (0, 0, 0), 0)
    (data / "seg-lungs-LUNA16").mkdir()
    (data / "seg-lungs-LUNA16" / "1.2.0.mhd").write_bytes(b"a mask")
    (data / "candidates.csv").write_text("superseded")
    _csv(data / "annotations.csv", [[*columns, "diameter_mm"], *tables["annotations"]])
    _csv(data / "candidates_V2.csv", [[*columns, "class"], *tables["candidates"]])
    excluded = data / "evaluationScript" / "annotations" / "annotations_excluded.csv"
    _csv(excluded, [[*columns, "diameter_mm"], *tables["excluded"]])


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
    volume = chest_hu(shape, 90, lesion=True)
    write_nifti(train / "volume-covid19-A-0900_seg.nii.gz", mask, spacing_mm)
    write_nifti(train / "volume-covid19-A-0901_ct.nii.gz", volume, spacing_mm)
    write_nifti(train / "volume-covid19-A-0902_ct.nii.gz", volume, spacing_mm)
    write_nifti(train / "volume-covid19-A-0902_seg.nii.gz", mask[:-1], spacing_mm)
    write_nifti(data / "Validation" / "volume-covid19-A-0003_ct.nii.gz", volume, spacing_mm)


FINDINGS = ("A nodule in the right lung.", "Pleural effusion.", "Emphysema.", "Consolidation.")
LABELS = ("Lung nodule", "Pleural effusion", "Emphysema", "Consolidation")


def write_ct_rate(
    data: Path, num_train: int = 6, num_valid: int = 6, label_names: Sequence[str] = LABELS
) -> None:
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
            seed = index + 100 * (part == "valid")  # nobody's image is another's
            write_nifti(path, chest_hu(seed=seed), (9.0, 9.0, 14.0))
            number = int(name.split("_")[1])
            text = FINDINGS[number % 4] + f" Case {number}."
            row = [name + ".nii.gz", "Not given.", "Not given.", text, "Not given."]
            if name.startswith("valid_91"):
                row = [row[0]] + ["Not given."] * 4
            if not name.startswith("valid_92"):
                reports.append(row)
            labels.append(
                [row[0], *(str(int(number % 4 == n % 4)) for n in range(len(label_names)))]
            )
        columns = ["VolumeName", "ClinicalInformation_EN", "Technique_EN"]
        _csv(
            root / "radiology_text_reports" / f"{table}_reports.csv",
            [[*columns, "Findings_EN", "Impressions_EN"], *reports],
        )
        _csv(
            root / "multi_abnormality_labels" / f"{part}_predicted_labels.csv",
            [["VolumeName", *label_names], *labels],
        )
    (root / "metadata").mkdir()
    (root / "metadata" / "no_chest_valid.txt").write_text("valid_90_a_1.nii.gz\n")


def write_ct_rate_raw(data: Path, volume: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    """Version 1 beside nothing: raw values in the scanner's order (columns to the left, rows to the
    back) of ``volume`` in RAS; rescale, spacing and directions in the metadata only."""
    root = data / "dataset"
    for name, number in (("valid_1_a_1", 1), ("valid_2_a_1", 2)):
        path = root / "valid" / f"valid_{number}" / f"valid_{number}_a" / f"{name}.nii.gz"
        write_nifti(path, volume[::-1, ::-1] + 1024, (1.0, 1.0, 1.0))
    x, y, z = spacing_mm
    where, axial = ["ImageOrientationPatient"], '"[1, 0, 0, 0, 1, 0]"'
    _csv(
        root / "metadata" / "validation_metadata.csv",
        [
            ["VolumeName", "RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing", *where],
            ["valid_1_a_1.nii.gz", "1", "-1024", f'"[{x}, {y}]"', f"{z}", axial],
            ["valid_2_a_1.nii.gz", "1", "-1024", f'"[{x}, {y}]"', "", axial],
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


def write_msd_lung(data: Path, num_cases: int = 5, split: object = None) -> None:
    """Pairs listed with a leading ``./``, one anisotropic, one stored LAS, one without tumour; a
    companion on disk and one that is listed, a listed image that is not there, one mask that is not
    there, a path that leaves the folder, two test images; ``split`` as splits_final.json."""
    root = data / "Task06_Lung"
    shape = (24, 22, 12)
    training = []
    for index in range(num_cases):
        mask = np.zeros(shape, np.uint8)
        if index != 2:
            mask[lesion_box(shape)] = 1
        name = f"lung_{1 + 3 * index:03d}.nii.gz"
        spacing_mm = (6.0, 7.0, 12.0) if index == 1 else (6.0, 6.0, 10.0)
        orientation = "LAS" if index == 3 else "RAS"
        volume = chest_hu(shape, index, lesion=index != 2)
        write_nifti(root / "imagesTr" / name, volume, spacing_mm, orientation)
        write_nifti(root / "labelsTr" / name, mask, spacing_mm, orientation)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    write_nifti(root / "imagesTr" / "lung_091.nii.gz", volume, (6.0, 6.0, 10.0))
    for name in ("lung_090", "lung_091", "._lung_001"):
        path = f"{name}.nii.gz"
        training.append({"image": f"./imagesTr/{path}", "label": f"./labelsTr/{path}"})
    training.append({"image": "../lung_092.nii.gz", "label": "./labelsTr/lung_001.nii.gz"})
    for name in ("._lung_001.nii.gz", "._lung_004.nii.gz"):
        (root / "imagesTr" / name).write_bytes(b"\x00\x05\x16\x07")
    test = [f"./imagesTs/lung_{number:03d}.nii.gz" for number in (2, 3)]
    for name in test:
        write_nifti(root / name, volume, (6.0, 6.0, 10.0))
    index_file = {"name": "Lung", "labels": {"0": "background", "1": "cancer"}}
    (root / "dataset.json").write_text(
        json.dumps(index_file | {"training": training, "test": test})
    )
    if split is not None:
        (root / "splits_final.json").write_text(json.dumps(split))


ACDC_FRAMES = (("training", 1, 2, 11), ("training", 2, 4, 13), ("testing", 101, 1, 9))


def write_acdc(data: Path, frames: Sequence[tuple[str, int, int, int]] = ACDC_FRAMES) -> None:
    """(folder, patient, ED, ES): a ball in a ring and a ball beside it, smaller at ES; slices of
    10 mm. In training also a patient without ES mask and one whose two frames are one."""
    for place, (part, patient, *numbers) in enumerate(frames):
        folder = data / "database" / part / f"patient{patient:03d}"
        for number, radius_mm in zip(numbers, (22.0, 16.0), strict=True):
            image, classes = heart(radius_mm, seed=10 * patient + number)
            orientation = "LAS" if place % 2 else "RAS"
            stem = f"{folder.name}_frame{number:02d}"
            write_nifti(folder / f"{stem}.nii.gz", image, (3.0, 3.0, 10.0), orientation)
            write_nifti(folder / f"{stem}_gt.nii.gz", classes, (3.0, 3.0, 10.0), orientation)
        text = f"ED: {numbers[0]}\nES: {numbers[1]}\nGroup: DCM\nHeight: 170.0\nNbFrame: 30\n"
        (folder / "Info.cfg").write_text(text)


def spoil_acdc(data: Path) -> None:
    """Two bad training patients: ES without mask; ED and ES the same frame."""
    write_acdc(data, [("training", 88, 1, 12), ("training", 89, 3, 12)])
    training = data / "database" / "training"
    (training / "patient088" / "patient088_frame12_gt.nii.gz").unlink()
    (training / "patient089" / "Info.cfg").write_text("ED: 3\nES: 3\nGroup: NOR\n")


def heart(radius_mm: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image int16 and classes uint8, (X, Y, Z) = (28, 26, 8) of 3 x 3 x 10 mm."""
    shape = (28, 26, 8)
    x, y, z = np.meshgrid(*map(np.arange, shape), indexing="ij")
    z_mm = 10.0 * (z - 3.5)
    left = (3.0 * (x - 12)) ** 2 + (3.0 * (y - 13)) ** 2 + (0.4 * z_mm) ** 2
    right = (3.0 * (x - 21)) ** 2 + (3.0 * (y - 13)) ** 2 + (0.4 * z_mm) ** 2
    classes = np.zeros(shape, np.uint8)
    classes[right < (0.8 * radius_mm) ** 2] = 1
    classes[left < (radius_mm + 7.0) ** 2] = 2
    classes[left < radius_mm**2] = 3
    image = np.array([40, 200, 90, 200])[classes]
    noise = np.random.default_rng(seed).normal(0, 8, shape)
    return np.clip(image + noise, 0, None).astype(np.int16), classes
