"""The embedded cohort's public sets, read by the sources: every planted trap has its reason."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.converters import reasons
from mg3d.data.conversion import convert_volumes
from mg3d.data.reports import clean_reports
from mg3d.data.sources.ct_rate import METADATA, metadata_of, read_fixed, read_raw, rows_by_volume
from mg3d.params import (
    CleanReports,
    ConvertVolumes,
    CtRateReports,
    CtRateVolumes,
    CtrgReports,
    CtrgVolumes,
    WriteCohort,
)
from mg3d.phantom.cohort import write_cohort

STAGE = ConvertVolumes(num_workers=1, min_lung_mm=60.0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "data"
    sizes = {"num_patients": 4, "num_segmentation_cases": 8, "num_labelled_cases": 8}
    sizes |= {"num_retrieval_cases": 8}
    public = {"num_ct_rate_scans": 3, "num_ctrg_studies": 4, "shape_voxels": (16, 32, 32)}
    write_cohort(out, WriteCohort(**sizes, **public, num_workers=1))
    return out


def test_ct_rate(cohort: Path, tmp_path: Path) -> None:
    dataset = cohort / "ct_rate/dataset"
    convert_volumes(CtRateVolumes(path=dataset), tmp_path / "volumes", STAGE)
    assert reasons(tmp_path / "volumes") == {
        "used": 5,  # three good scans, one whose report says nothing, one without a report
        "not_chosen": 2,  # a second reconstruction, and version 1 of a volume in both
        "no_chest": 1,
        "missing_tag": 2,
        "not_hu": 1,
        "truncated": 1,
    }
    reports = CtRateReports(path=dataset / "radiology_text_reports")
    clean_reports(reports, tmp_path / "reports", CleanReports())
    assert reasons(tmp_path / "reports") == {"used": 10, "report_not_given": 1}
    joined = pd.read_parquet(tmp_path / "volumes/manifest.parquet").merge(
        pd.read_parquet(tmp_path / "reports/reports.parquet"), on="accession_id"
    )
    assert len(joined) == 3


def test_both_versions_of_the_same_phantom_agree(cohort: Path) -> None:
    dataset = cohort / "ct_rate/dataset"
    name = "train_1/train_1_a/train_1_a_1.nii.gz"
    metadata = metadata_of(rows_by_volume(dataset / METADATA)["train_1_a_1"])
    assert metadata is not None
    fixed, affine = read_fixed(dataset / "train_fixed" / name, metadata)
    raw, raw_affine = read_raw(dataset / "train" / name, metadata)
    np.testing.assert_array_equal(raw, fixed)
    assert affine is not None
    assert raw_affine is not None
    np.testing.assert_allclose(raw_affine[:3, :3], affine[:3, :3], atol=1e-3)


def test_ctrg_chest(cohort: Path, tmp_path: Path) -> None:
    root = cohort / "ctrg_chest"
    convert_volumes(CtrgVolumes(path=root), tmp_path / "volumes", STAGE)
    manifest = pd.read_parquet(tmp_path / "volumes/manifest.parquet")
    assert len(manifest) == 6  # four good, one without a report, one amid clutter
    found = reasons(tmp_path / "volumes")
    assert set(found) == {"used", "undecodable", "missing_slice", "stray_file"}
    assert found["stray_file"] == 2
    list_of_reports = CtrgReports(path=root / "chest_ctrg_jpg.json")
    clean_reports(list_of_reports, tmp_path / "reports", CleanReports())
    assert reasons(tmp_path / "reports") == {"used": 8, "empty_report": 1}
    reports = pd.read_parquet(tmp_path / "reports/reports.parquet")
    assert len(manifest.merge(reports, on="accession_id")) == 5
    assert reports["text_group"].value_counts().tolist()[:2] == [2, 1]  # the twins
