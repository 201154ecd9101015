"""The six stages in a row on an export with every bad input: nothing lost, nothing crashes."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mg3d.data.conversion import convert_volumes
from mg3d.data.ct.nifti import write_nifti
from mg3d.data.embeddings import embed_sentences
from mg3d.data.manifest import build_manifest
from mg3d.data.pairs import Pairs
from mg3d.data.reports import clean_reports
from mg3d.data.sentences import segment_sentences
from mg3d.data.volumes import pack_volumes
from mg3d.ledger import Ledger, read_summaries
from mg3d.parallel import parallel_map
from mg3d.params import (
    BuildManifest,
    CleanReports,
    ConvertVolumes,
    CtRate,
    CtRateReports,
    CtRateVolumes,
    CtrgChest,
    CtrgReports,
    CtrgVolumes,
    DicomExport,
    DicomVolumes,
    EmbedSentences,
    Inspect,
    PackVolumes,
    ReportTable,
    SegmentSentences,
    Sources,
    VolumeContract,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tiny_prepared import tiny_model

CONTRACT = VolumeContract(spacing_mm=(2.0, 2.0, 2.0), shape_voxels=(32, 32, 32))


EXPORT = "dicom_export"


def run_stages(data: Path, prepared: Path) -> dict[str, Ledger]:
    sources = Sources(
        dicom_export=DicomExport(
            volumes=DicomVolumes(path=data / "dicom"),
            reports=ReportTable(path=data / "reports.csv"),
        )
    )
    export = sources.named(EXPORT)
    converted = prepared / "convert_volumes" / EXPORT
    one_worker = ConvertVolumes(num_workers=1)
    return {
        f"convert_volumes/{EXPORT}": convert_volumes(export.volumes, converted, one_worker),
        f"clean_reports/{EXPORT}": clean_reports(
            export.reports, prepared / "clean_reports" / EXPORT, CleanReports()
        ),
        "segment_sentences": segment_sentences(
            prepared / "clean_reports", prepared / "segment_sentences", SegmentSentences(), sources
        ),
        "embed_sentences": embed_sentences(
            prepared,
            prepared / "embed_sentences",
            EmbedSentences(),
            tiny_model(data.parent / "encoder").text,
        ),
        f"pack_volumes/{EXPORT}": pack_volumes(
            converted, prepared / "pack_volumes" / EXPORT, PackVolumes(num_workers=1), CONTRACT
        ),
        "build_manifest": build_manifest(
            prepared,
            prepared / "build_manifest",
            BuildManifest(validation_fraction=0.01, test_fraction=0.0),
            sources,
        ),
    }


@pytest.fixture
def export(tmp_path: Path, write_series: Callable, edit_slice: Callable) -> Path:
    """Studies 1 to 9 and reports, with the bad inputs of the issue."""
    dicom = tmp_path / "data/dicom"
    hu = np.random.default_rng(0).integers(-1000, 1000, (10, 8, 12))
    files = {
        number: write_series(
            dicom / f"{number % 2}",
            uid=f"1.5.{number}.1",
            study=f"1.5.{number}",
            patient=f"MRN-0000{number}",
            accession=f"ACC-{number}",
            prefix=f"{number}-",
            seed=number,
            hu=np.full((10, 8, 8), -1000) if number == 6 else hu,
        )
        for number in range(1, 8)
    }
    files[2][3].write_bytes(files[2][3].read_bytes()[:-100])  # truncated
    files[3][4].unlink()  # a missing slice
    edit_slice(files[4][0], PatientID="MRN-somebody else")  # two patients in one series
    (dicom / "README.txt").write_text("not an image")
    text = "FINDINGS: The lungs of this one are clear. Seen with Dr. Hale.\nIMPRESSION: Normal."
    with (tmp_path / "data/reports.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["AccessionNumber", "PatientID", "ReportText"])
        for number in (1, 2, 3, 4, 6, 8):  # 5: study without report; 8: report without study
            rows.writerow([f"ACC-{number}", f"MRN-0000{number}", text])
        rows.writerow(["ACC-7", "MRN-00007", "  "])  # an empty report
    return tmp_path / "data"


def test_inputs_are_used_or_quarantined_in_every_stage(export: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    summaries = {name: ledger.summary() for name, ledger in run_stages(export, prepared).items()}
    for summary in summaries.values():
        assert summary["inputs"] == summary["used"] + summary["quarantined"]
    assert {name: summary["reasons"] for name, summary in summaries.items()} == {
        f"convert_volumes/{EXPORT}": {
            "missing_slice": 1,
            "mixed_patients": 1,
            "not_dicom": 1,
            "truncated": 1,
        },
        f"clean_reports/{EXPORT}": {"empty_report": 1},
        "segment_sentences": {},
        "embed_sentences": {},
        f"pack_volumes/{EXPORT}": {"constant": 1},
        # reports of 2, 3, 4 and 6 lost their studies, 8 never had one; studies 5 and 7
        "build_manifest": {"report_without_study": 5, "study_without_report": 2},
    }
    on_disk = {summary["stage"]: summary for summary in read_summaries(prepared)}
    assert on_disk == {name: {**summary, "stage": name} for name, summary in summaries.items()}

    entries = (prepared / "convert_volumes/dicom_export/ledger.jsonl").read_text().splitlines()
    num_files = sum(path.is_file() for path in (export / "dicom").rglob("*"))
    assert sum(json.loads(entry)["count"] for entry in entries) == num_files

    (pair,) = Pairs(prepared, "train", CONTRACT)
    assert pair.volume.shape == (1, 32, 32, 32)
    assert pair.sentences == [
        "The lungs of this one are clear.",
        "Seen with Dr. [NAME].",
        "Normal.",
    ]


def add_public_sets(data: Path) -> Sources:
    """Two studies of CT-RATE and two of CTRG-Chest beside the export."""
    text = "The lungs of this one are clear. Normal heart."
    rng = np.random.default_rng(1)
    scans = data / "ct_rate/dataset"
    (scans / "radiology_text_reports").mkdir(parents=True)
    with (scans / "radiology_text_reports/train_reports.csv").open("w") as file:
        columns = ["ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"]
        rows = csv.writer(file)
        rows.writerow(["VolumeName", *columns])
        for number in (1, 2):
            name = f"train_{number}_a_1.nii.gz"
            rows.writerow([name, "Not given.", "CT.", f"{text} Number {number}.", "Not given."])
            hu = rng.choice(np.array([-900, 40], np.int16), (12, 12, 9))
            write_nifti(hu, np.diag([3.0, 3.0, 3.0, 1.0]), scans / "train_fixed" / name)
    entries = []
    for number in (1, 2):
        folder = data / f"ctrg_chest/Chest/{number}"
        folder.mkdir(parents=True)
        for slice_number in range(1, 12):
            grey = rng.integers(0, 256, (16, 16), np.uint8)
            Image.fromarray(grey).save(folder / f"{slice_number}.jpg")
        entries.append({"image_path": f"Chest/{number}", "report": f"{text} Item {number}."})
    (data / "ctrg_chest/chest_ctrg_jpg.json").write_text(json.dumps(entries))
    return Sources(
        dicom_export=DicomExport(
            volumes=DicomVolumes(path=data / "dicom"),
            reports=ReportTable(path=data / "reports.csv"),
        ),
        ct_rate=CtRate(
            volumes=CtRateVolumes(path=scans),
            reports=CtRateReports(path=scans / "radiology_text_reports"),
        ),
        ctrg_chest=CtrgChest(
            volumes=CtrgVolumes(path=data / "ctrg_chest"),
            reports=CtrgReports(path=data / "ctrg_chest/chest_ctrg_jpg.json"),
        ),
    )


def test_sources_are_trained_on_together_until_one_is_left_out(
    export: Path, tmp_path: Path
) -> None:
    sources, prepared = add_public_sets(export), tmp_path / "prepared"
    for name in sources.names:
        converted, one = prepared / "convert_volumes" / name, ConvertVolumes(num_workers=1)
        source = sources.named(name)
        convert_volumes(source.volumes, converted, one)
        clean_reports(source.reports, prepared / "clean_reports" / name, CleanReports())
        packed = prepared / "pack_volumes" / name
        pack_volumes(converted, packed, PackVolumes(num_workers=1), CONTRACT)

    def pairs(used: Sources) -> list[tuple[str, str]]:
        segment_sentences(
            prepared / "clean_reports", prepared / "segment_sentences", SegmentSentences(), used
        )
        params = BuildManifest(validation_fraction=0.01, test_fraction=0.0)
        ledger = build_manifest(prepared, prepared / "build_manifest", params, used)
        summary = ledger.summary()
        assert summary["inputs"] == summary["used"] + summary["quarantined"]
        manifest = pd.read_parquet(prepared / "build_manifest/manifest.parquet")
        texts = {pair.study_id: pair.sentences[-1] for pair in Pairs(prepared, "train", CONTRACT)}
        return sorted(zip(manifest["source"], manifest["study_id"].map(texts), strict=True))

    assert pairs(sources) == [
        ("ct_rate", "Number 1."),
        ("ct_rate", "Number 2."),
        ("ctrg_chest", "Item 1."),
        ("ctrg_chest", "Item 2."),
        ("dicom_export", "Normal."),
    ]
    assert pairs(sources.model_copy(update={"ct_rate": None})) == [
        ("ctrg_chest", "Item 1."),
        ("ctrg_chest", "Item 2."),
        ("dicom_export", "Normal."),
    ]


def test_the_prepared_data_can_be_looked_at(export: Path, tmp_path: Path) -> None:
    from mg3d.inspection import inspect

    prepared = tmp_path / "prepared"
    about = (Inspect(num_studies=3), CONTRACT, Sources(dicom_export=DicomExport()))
    with pytest.raises(ValueError, match=r"no .*manifest.parquet: run `dvc repro`"):
        inspect(prepared, tmp_path / "out", *about)
    run_stages(export, prepared)
    pictures = inspect(prepared, tmp_path / "out", *about)
    assert [picture.name for picture in pictures] == [
        *("contact_sheet.png", "hu.png", "distributions.png", "quarantine.png")
    ]
    assert all(picture.stat().st_size > 5000 for picture in pictures)


def test_no_identifier_leaves_the_export(export: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    run_stages(export, prepared)
    secrets = [b"MRN-0000", b"ACC-", b"DOE", b"Hale", b"1.5.1"]
    for path in (path for path in prepared.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content = pd.read_parquet(path).to_csv().encode()
        assert not [s for s in secrets if s in content or s.decode() in path.name], path


def test_a_second_run_writes_the_same_bytes(export: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_stages(export, tmp_path / name)
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        twin = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == twin.read_bytes(), path.name


def test_the_stages_import_neither_torch_nor_monai() -> None:
    modules = ("dicom", "reports", "sentences", "embeddings", "volumes", "manifest")
    code = "import sys\n" + "".join(f"import mg3d.data.{name}\n" for name in modules)
    code += "print([name for name in ('torch', 'monai', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_parallel_map_keeps_order_reports_progress_and_passes_errors_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert list(parallel_map(abs, [-3, 1, -2], 2, "numbers")) == [3, 1, 2]
    assert "numbers: 3/3, " in capfd.readouterr().err
    assert list(parallel_map(abs, [], 2, "nothing")) == []
    with pytest.raises(TypeError):
        list(parallel_map(len, [1, 2], 2, "mistakes"))
