"""The official layouts, read as their owners describe them (spec/downstream 2, 3, 4, 6, 7)."""

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from PIL import Image

from mg3d.params import WriteCohort
from mg3d.phantom.layouts import luna16, pacs, stoic2021
from mg3d.phantom.layouts.pacs import num_studies


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_pacs(cohort: Path, tiny: WriteCohort) -> None:
    rows = table(cohort / "reports.csv")
    assert list(rows[0]) == [
        "AccessionNumber",
        "PatientID",
        "PatientName",
        "StudyDate",
        "ReportText",
    ]
    assert (cohort / "reports.csv").read_text().startswith('"AccessionNumber","PatientID"')
    studies: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for folder in sorted((cohort / "dicom").glob("PAT0[0-8]*")):
        for path in folder.rglob("*"):
            if path.is_file():
                data = pydicom.dcmread(path, stop_before_pixels=True)
                studies[data.AccessionNumber].add(data.StudyInstanceUID)
                patients[data.PatientID].add(data.AccessionNumber)
                assert path.stem not in str(data.InstanceNumber)
    assert len(patients) == tiny.num_patients
    assert all(len(uids) == 1 for uids in studies.values())
    assert max(map(len, patients.values())) > 1  # several studies per some patients
    texts = {row["AccessionNumber"]: row["ReportText"] for row in rows}
    assert set(studies) <= set(texts)
    assert all(len(texts[key]) > 100 for key in studies)


def test_some_patients_were_examined_more_than_once() -> None:
    params = WriteCohort(num_patients=200, num_segmentation_cases=8, num_labelled_cases=8)
    counts = Counter(num_studies(params, n) for n in range(200))
    assert set(counts) == {1, 2, 3}
    assert 0.8 < counts[1] / 200 < 0.95


def test_clutter(cohort: Path) -> None:
    rows = table(cohort / "reports.csv")
    keys = Counter(row["AccessionNumber"] for row in rows)
    assert keys[""] == 1
    assert sorted(keys.values())[-1] == 2
    texts = [row["ReportText"] for row in rows]
    assert texts.count("Not given.") == 1
    assert sum(not text.strip() for text in texts) == 1
    assert (cohort / "dicom" / "PAT09000" / "README.txt").read_text().startswith("This CD")
    kinds, patients = Counter(), defaultdict(set)
    for path in sorted((cohort / "dicom").glob("PAT09*/**/*")):
        if path.is_file() and path.name != "README.txt":
            data = pydicom.dcmread(path, stop_before_pixels=True)
            kinds[(data.Modality, data.SOPClassUID.name, str(data.ImageType[2]))] += 1
            patients[data.SeriesInstanceUID].add(data.PatientID)
    assert kinds[("CT", "CT Image Storage", "LOCALIZER")] == 1
    assert sum(len(ids) == 2 for ids in patients.values()) == 1
    assert {name for _, name, _ in kinds} >= {"MR Image Storage", "Secondary Capture Image Storage"}
    [cut] = (cohort / "dicom").glob("PAT09*/**/*.dcm")
    whole = next(path for path in cut.parent.iterdir() if path != cut)
    assert cut.stat().st_size < whole.stat().st_size


def test_stoic2021(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "stoic2021"
    rows = table(root / "metadata" / "reference.csv")
    assert list(rows[0]) == ["PatientID", "probCOVID", "probSevere"]
    files = {path.stem: path for path in (root / "data" / "mha").glob("*.mha")}
    assert {row["PatientID"] for row in rows} == set(files)
    states = Counter((row["probCOVID"], row["probSevere"]) for row in rows)
    assert len(rows) == tiny.num_labelled_cases + 1
    assert states[("0", "1")] == 1  # invalid
    assert states[("1", "1")] >= 2
    assert states[("1", "0")] >= 2
    assert states[("0", "0")] >= 2
    spacings, lengths = set(), []
    for path in files.values():
        image = SimpleITK.ReadImage(str(path))
        assert image.GetMetaData("PatientSex") in ("F", "M")
        assert image.GetMetaData("PatientAge").endswith("5Y")
        spacings.add(image.GetSpacing())
        lengths.append(image.GetSpacing()[2] * image.GetSize()[2])
    assert len(spacings) == len(files)
    assert min(lengths) < 0.6 * sorted(lengths)[1]  # one is shorter than a chest
    ratios = sorted(spacing[2] / spacing[0] for spacing in spacings)
    assert ratios[-1] > 1.5 * ratios[-2]  # one is strongly anisotropic


def test_cc_ccii(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "cc_ccii"
    rows = table(root / "unzip_filenames.csv")
    assert list(rows[0]) == ["zip_file", "label", "patient_id", "scan_id", "n_slice"]
    assert len({row["patient_id"] for row in rows}) == tiny.num_labelled_cases + 1
    assert len(rows) > tiny.num_labelled_cases + 1  # some patients have two scans
    suffixes: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        folder = root / row["label"] / row["patient_id"] / row["scan_id"]
        slices = sorted(folder.iterdir())
        assert len(slices) == int(row["n_slice"])
        suffixes[row["label"]] |= {path.suffix for path in slices}
        assert all(np.asarray(Image.open(path)).dtype == np.uint8 for path in slices[:2])
    assert all(found == {".png", ".jpg"} for found in suffixes.values())
    assert [row["scan_id"] for row in rows if row["patient_id"] == "1781"] == ["3567"]  # known bad
    assert {row["zip_file"].split("-")[0] for row in rows} == {"CP", "NCP", "COVID19", "Normal"}


def test_ct_rate_diagnosis(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "ct_rate_diagnosis" / "dataset"
    for part, count in (
        ("train", tiny.num_labelled_cases),
        ("valid", tiny.num_labelled_cases // 2 + 1),
    ):
        rows = table(root / "multi_abnormality_labels" / f"{part}_predicted_labels.csv")
        assert len(rows[0]) == 1 + 18
        assert all(set(list(row.values())[1:]) <= {"0", "1"} for row in rows)
        files = {path.name for path in (root / f"{part}_fixed").rglob("*.nii.gz")}
        assert files == {row["VolumeName"] for row in rows}
        assert len({name.rsplit("_", 1)[0] for name in files}) == count
    assert len((root / "metadata" / "no_chest_valid.txt").read_text().split()) == 1


def test_luna16(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "luna16"
    files = {path.stem: path for path in root.glob("subset*/*.mhd")}
    assert len(files) == tiny.num_labelled_cases
    assert {path.parent.name for path in files.values()} == {f"subset{n}" for n in range(10)}
    nodules, candidates = table(root / "annotations.csv"), table(root / "candidates_V2.csv")
    excluded = table(root / "evaluationScript/annotations/annotations_excluded.csv")
    assert any(row["diameter_mm"] == "-1.0" for row in excluded)
    images = {uid: SimpleITK.ReadImage(str(path)) for uid, path in files.items()}
    flips = {image.GetDirection()[0] for image in images.values()}
    assert flips == {1.0, -1.0}
    for row in candidates:  # every place is in its image
        image = images[row["seriesuid"]]
        index = image.TransformPhysicalPointToIndex([float(row[f"coord{a}"]) for a in "XYZ"])
        assert all(0 <= i < size for i, size in zip(index, image.GetSize(), strict=True))
    found = {row["seriesuid"] for row in candidates if row["class"] == "1"}
    assert len([row for row in candidates if row["class"] == "1"]) < len(nodules)  # the ceiling
    assert found <= set(files)


def test_luna16_nodules_are_where_the_table_says(tmp_path: Path) -> None:
    params = WriteCohort(
        num_patients=4, num_segmentation_cases=8, num_labelled_cases=10, shape_voxels=(48, 96, 96)
    )
    rows = [row for index in range(4) for row in luna16.write_case(tmp_path, params, index)]
    nodules = [row for row in rows if row["kind"] == "annotation"]
    assert len({row["seriesuid"] for row in nodules}) == 4  # one is flipped, one has thick slices
    for row in nodules:
        [path] = tmp_path.glob(f"subset*/{row['seriesuid']}.mhd")
        image = SimpleITK.ReadImage(str(path))
        index = image.TransformPhysicalPointToIndex([float(row[f"coord{a}"]) for a in "XYZ"])
        assert image[index] > -150, row


def test_stoic_signal_is_in_the_lungs(tmp_path: Path) -> None:
    """The share of hazy voxels grows from negative to mild to severe."""
    params = WriteCohort(
        num_patients=4, num_segmentation_cases=8, num_labelled_cases=20, shape_voxels=(40, 80, 80)
    )
    root, rows = tmp_path, []
    for index in range(2, 20):  # the first two have odd grids
        rows += stoic2021.write_case(root, params, index)
    stoic2021.write_tables(root, params, rows)
    dense: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table(root / "metadata" / "reference.csv"):
        voxels = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(root / "data" / "mha" / f"{row['PatientID']}.mha"))
        )
        hazy = ((voxels > -690) & (voxels < -400)).sum() / (voxels < -350).sum()
        dense[(row["probCOVID"], row["probSevere"])].append(float(hazy))
    means = {key: np.mean(values) for key, values in dense.items()}
    assert means[("0", "0")] < means[("1", "0")] < means[("1", "1")]


def test_covid19_20(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "covid19_20"
    images = {p.name.removesuffix("_ct.nii.gz"): p for p in (root / "Train").glob("*_ct.nii.gz")}
    masks = {p.name.removesuffix("_seg.nii.gz"): p for p in (root / "Train").glob("*_seg.nii.gz")}
    assert len(images) == tiny.num_segmentation_cases
    assert set(images) < set(masks)
    assert len(set(masks) - set(images)) == 1
    assert sum(stem.endswith("_1") for stem in images) == 1
    assert all(stem.startswith("volume-covid19-A-") for stem in images)
    numbers = sorted(int(stem.split("-")[3][:4]) for stem in images)
    assert numbers[-1] - numbers[0] > len(numbers)
    assert len(list((root / "Validation").glob("*_ct.nii.gz"))) == 4
    assert not list((root / "Validation").glob("*_seg.nii.gz"))
    orientations, empty = set(), 0
    for stem, path in images.items():
        image, mask = nibabel.load(path), nibabel.load(masks[stem])
        np.testing.assert_array_equal(image.affine, mask.affine)
        orientations.add("".join(nibabel.aff2axcodes(image.affine)))
        lesion = np.asarray(mask.dataobj)
        assert lesion.dtype == np.uint8
        assert set(np.unique(lesion)) <= {0, 1}
        empty += not lesion.any()
        if lesion.any():
            hu = np.asarray(image.dataobj)
            assert hu[lesion == 1].mean() > -750
    assert orientations == {"LAS", "RAS"}
    assert empty == 1


def test_ct_rate_retrieval(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "ct_rate_retrieval" / "dataset"
    reports = table(root / "radiology_text_reports" / "validation_reports.csv")
    metadata = table(root / "metadata" / "validation_metadata.csv")
    labels = table(root / "multi_abnormality_labels" / "valid_predicted_labels.csv")
    spec = Path(__file__).parent / "ct_rate_columns.json"
    expected = json.loads(spec.read_text())
    assert list(reports[0]) == expected["reports"]
    assert list(metadata[0]) == expected["metadata"]
    assert list(labels[0]) == ["VolumeName", *expected["labels"]]
    names = [row["VolumeName"] for row in reports]
    assert names == [row["VolumeName"] for row in metadata] == [row["VolumeName"] for row in labels]
    files = {path.name: path for path in (root / "valid_fixed").rglob("*.nii.gz")}
    assert set(files) == set(names)
    for name, path in files.items():
        split, patient, scan, _ = name.removesuffix(".nii.gz").split("_")
        assert path.parent.name == f"{split}_{patient}_{scan}"
        assert path.parent.parent.name == f"{split}_{patient}"
    assert len({name.rsplit("_", 1)[0] for name in names}) == tiny.num_retrieval_cases + 2
    no_chest = (root / "metadata" / "no_chest_valid.txt").read_text().split()
    assert len(no_chest) == 1
    assert no_chest[0] in files
    by_scan = defaultdict(set)
    for row in reports:
        by_scan[row["VolumeName"].rsplit("_", 1)[0]].add(row["Findings_EN"])
    assert all(len(texts) == 1 for texts in by_scan.values())
    assert sum(name.endswith("_2.nii.gz") for name in names) >= 1
    assert any(scan.endswith("_b") for scan in by_scan)
    assert sum(row["Findings_EN"] == row["Impressions_EN"] == "Not given." for row in reports) == 1
    for row in metadata:
        image = nibabel.load(files[row["VolumeName"]])
        zooms = image.header.get_zooms()
        assert json.loads(row["XYSpacing"]) == [round(float(z), 3) for z in zooms[:2]]
        assert row["ZSpacing"] in ("", f"{zooms[2]:g}")
        assert int(row["NumberofSlices"]) == image.shape[2]
        # Version 2: HU already, so that air is near -1000 without the table's rescale.
        assert abs(np.median(np.asarray(image.dataobj)[:, :2]) + 1000) < 30
    assert sum(row["ZSpacing"] == "" for row in metadata) == 1


def test_ct_rate_labels_follow_the_reports(cohort: Path) -> None:
    root = cohort / "downstream" / "ct_rate_retrieval" / "dataset"
    words = {
        "Cardiomegaly": ("ardiomegaly", "enlarged (", "cardiac silhouette"),
        "Hiatal hernia": ("ernia",),
    }
    labels = table(root / "multi_abnormality_labels" / "valid_predicted_labels.csv")
    reports = {
        row["VolumeName"]: row["Findings_EN"]
        for row in table(root / "radiology_text_reports" / "validation_reports.csv")
    }
    for row in labels:
        sentences = [s for s in reports[row["VolumeName"]].split(". ") if not s.startswith("No ")]
        if sentences != ["Not given."]:
            for label, keys in words.items():
                said = any(key in sentence for key in keys for sentence in sentences)
                assert row[label] == str(int(said))


def test_ctrg_report(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "ctrg_report"
    entries = json.loads((root / "chest_ctrg_jpg.json").read_text())
    assert len(entries) == tiny.num_labelled_cases
    assert all(set(entry) == {"image_path", "report", "result"} for entry in entries)
    for entry in entries:
        slices = sorted((root / entry["image_path"]).iterdir(), key=lambda path: int(path.stem))
        names = [path.name for path in slices]
        assert names == [f"{n}.jpg" for n in range(1, len(names) + 1)]
        assert len(names) >= 10
        assert sorted(names) != names
        with Image.open(slices[0]) as image:
            assert image.mode == "L"
    repeated = [n for n in Counter(entry["report"] for entry in entries).values() if n > 1]
    assert repeated == [2]
    lengths = sorted(len(entry["report"].split()) for entry in entries)
    assert lengths[-1] > 150 > lengths[-2]
    words = Counter(word for entry in entries for word in entry["report"].split())
    assert words["dextrocardia."] == 1


def test_ctrg_slices_run_from_the_head(cohort: Path) -> None:
    """The upper abdomen has no lungs, so the last slice is brighter than the middle one."""
    entry = json.loads((cohort / "downstream/ctrg_report/chest_ctrg_jpg.json").read_text())[0]
    folder = cohort / "downstream" / "ctrg_report" / entry["image_path"]
    last = max(int(path.stem) for path in folder.iterdir())
    means = [np.asarray(Image.open(folder / f"{n}.jpg")).mean() for n in (last // 2, last)]
    assert means[0] < means[1]


def test_patients_are_disjoint_between_data_sets(cohort: Path) -> None:
    """Different seeds of anatomy: no volume of one data set occurs in another."""
    first = {
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).tobytes()
        for path in (cohort / "downstream" / "stoic2021").rglob("*.mha")
    }
    second = {
        np.asarray(nibabel.load(path).dataobj).T.tobytes()
        for path in (cohort / "downstream" / "ct_rate_retrieval").rglob("*.nii.gz")
    }
    assert not first & second
    assert len(first) > 8
    assert len(second) > 8


def test_series_vary(tmp_path: Path) -> None:
    """Over many studies: matrices, tilts, slice orders, storages, kernels, file name endings."""
    params = WriteCohort(
        num_patients=40, num_segmentation_cases=8, num_labelled_cases=8, shape_voxels=(16, 20, 20)
    )
    for index in range(40):
        pacs.write_case(tmp_path, params, index)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for folder in sorted(tmp_path.glob("dicom/*/*/SER*")):
        files = sorted(folder.iterdir())
        slices = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
        first = slices[0]
        positions = sorted(
            (float(d.ImagePositionPatient[2]), int(d.InstanceNumber)) for d in slices
        )
        numbers = [int(data.InstanceNumber) for data in slices]
        assert numbers not in (sorted(numbers), sorted(numbers, reverse=True))
        seen["order"]["up" if positions[0][1] < positions[-1][1] else "down"] += 1
        seen["oblique"][str(list(first.ImageOrientationPatient) != [1, 0, 0, 0, 1, 0])] += 1
        seen["square matrix"][str(first.Rows == first.Columns)] += 1
        seen["square pixels"][str(first.PixelSpacing[0] == first.PixelSpacing[1])] += 1
        seen["signed"][str(first.PixelRepresentation)] += 1
        seen["slope"][str(first.RescaleSlope)] += 1
        seen["intercepts"][str(len({str(d.RescaleIntercept) for d in slices}))] += 1
        seen["kernel"][first.ConvolutionKernel] += 1
        seen["ending"][files[0].suffix] += 1
        seen["series"][str(first.SeriesNumber)] += 1
    assert {name: len(values) for name, values in seen.items()} == dict.fromkeys(seen, 2)


def test_msd_lung(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "msd_lung" / "Task06_Lung"
    index = json.loads((root / "dataset.json").read_text())
    assert index["labels"] == {"0": "background", "1": "cancer"}
    assert index["numTraining"] == len(index["training"]) == tiny.num_segmentation_cases
    assert index["numTest"] == len(index["test"]) == 2
    assert all(path.startswith("./imagesTs/lung_") for path in index["test"])
    names = [path.name for path in (root / "imagesTr").glob("*.nii.gz")]
    assert sum(name.startswith("._") for name in names) == 1
    assert {f"./imagesTr/{name}" for name in names if name[0] == "l"} == {
        entry["image"] for entry in index["training"]
    }
    empty, ratios = 0, []
    for entry in index["training"]:
        assert entry["label"] == entry["image"].replace("imagesTr", "labelsTr")
        image, mask = nibabel.load(root / entry["image"]), nibabel.load(root / entry["label"])
        np.testing.assert_array_equal(image.affine, mask.affine)
        zooms = image.header.get_zooms()
        ratios.append(zooms[2] / zooms[0])
        tumour = np.asarray(mask.dataobj)
        assert set(np.unique(tumour)) <= {0, 1}
        empty += not tumour.any()
        if tumour.any():
            hu = np.asarray(image.dataobj)
            assert np.median(hu[tumour == 1]) > -650  # lung is near -850; voxels are coarse
            assert 2 < tumour.sum() * np.prod(zooms) / 1000 < 150
    assert empty == 1
    assert sorted(ratios)[-1] > 1.2 * sorted(ratios)[-2]  # one has thick slices


def test_acdc(cohort: Path, tiny: WriteCohort) -> None:
    root = cohort / "downstream" / "acdc" / "database"
    folders = sorted(root.glob("*/patient*"))
    assert len(folders) == tiny.num_segmentation_cases // 2
    names = [f"{folder.parent.name} {folder.name}" for folder in folders]
    assert names[0] == "testing patient101"
    assert "training patient001" in names
    frames = set()
    for folder in folders:
        info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
        assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
        assert int(info["ED"]) < int(info["ES"]) < int(info["NbFrame"])
        frames |= {info["ED"], info["ES"]}
        volumes = []
        for key in ("ED", "ES"):
            stem = folder / f"{folder.name}_frame{int(info[key]):02d}"
            image, mask = nibabel.load(f"{stem}.nii.gz"), nibabel.load(f"{stem}_gt.nii.gz")
            np.testing.assert_array_equal(image.affine, mask.affine)
            across, along, thick = image.header.get_zooms()
            assert across == along
            assert thick >= 7
            voxels, classes = np.asarray(image.dataobj), np.asarray(mask.dataobj)
            assert set(np.unique(classes)) == {0, 1, 2, 3}
            assert (voxels == 0).any()
            blood, muscle = (np.median(voxels[classes == label]) for label in (3, 2))
            assert blood > 1.4 * muscle
            volumes.append((classes == 3).sum())
        assert volumes[1] < volumes[0]
    assert len(frames) > 2
