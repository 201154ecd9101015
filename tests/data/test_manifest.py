"""build_manifest: the join, splits that stay put, and tables that do not fit."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.data.manifest import build_manifest, join, json_list, split_hash
from mg3d.data.planning import assign_split
from mg3d.data.sentences import REPORT_COLUMNS
from mg3d.ledger import Ledger
from mg3d.params import BuildManifest, DicomExport, Sources

EXPORT = Sources(dicom_export=DicomExport())
PARAMS = BuildManifest(seed=0, validation_fraction=0.2, test_fraction=0.2)


def prepared(
    root: Path,
    studies: list[tuple[str, str, str]],
    reports: dict[str, int],
    num_slices: dict[str, int] | None = None,
) -> Path:
    """Tables of the earlier stages: (study, patient, accession) and sentences per accession."""
    for stage in ("convert_volumes/dicom_export", "pack_volumes/dicom_export", "segment_sentences"):
        (root / stage).mkdir(parents=True)
    converted = pd.DataFrame(studies, columns=["study_id", "patient_id", "accession_id"])
    converted["num_slices"] = [(num_slices or {}).get(study, 10) for study, _, _ in studies]
    converted.to_parquet(root / "convert_volumes/dicom_export/manifest.parquet")
    packed = converted[["study_id"]].copy()
    packed["volume"] = packed["study_id"] + ".npy"
    packed["volume_sha256"], packed["contract_digest"] = "f" * 64, "c" * 16
    packed.to_parquet(root / "pack_volumes/dicom_export/manifest.parquet")
    rows = [
        (f"report-{accession}", accession, f"text-{count}", count, 0)
        for accession, count in reports.items()
    ]
    pd.DataFrame(rows, columns=REPORT_COLUMNS).to_parquet(
        root / "segment_sentences/reports.parquet"
    )
    return root


def many(count: int) -> list[tuple[str, str, str]]:
    """``count`` studies of half as many patients."""
    return [(f"study-{i:03d}", f"patient-{i // 2:03d}", f"acc-{i:03d}") for i in range(count)]


def test_join_and_its_ledger(tmp_path: Path) -> None:
    studies = [
        ("s1", "p1", "a1"),
        ("s2", "p2", "a2"),  # no report
        ("s3", "p3", ""),  # no accession number
        ("s4", "p4", "a4"),
        ("s5", "p4", "a4"),  # the same accession, more slices
        ("s6", "p6", "a6"),
        ("s7", "p7", "a6"),  # the same accession, another patient
    ]
    root = prepared(tmp_path, studies, {"a1": 3, "a4": 2, "a6": 1, "a9": 1}, {"s5": 20})
    params = BuildManifest(validation_fraction=0.01, test_fraction=0.0)
    ledger = build_manifest(root, tmp_path / "out", params, EXPORT)
    summary = ledger.summary()
    assert summary["inputs"] == 7 + 4
    assert summary["used"] == 4
    assert summary["reasons"] == {
        "mixed_patients": 3,
        "not_chosen": 1,
        "report_without_study": 1,
        "study_without_report": 2,
    }
    table = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert table.to_dict("records") == [
        {
            "study_id": study,
            "patient_id": patient,
            "source": "dicom_export",
            "report_id": f"report-{accession}",
            "text_group": f"text-{count}",
            "split": "train",
            "shard": "train-all",
            "volume": f"pack_volumes/dicom_export/volumes/{study}.npy",
            "volume_sha256": "f" * 64,
            "contract_digest": "c" * 16,
            "num_sentences": count,
        }
        for study, patient, accession, count in (("s1", "p1", "a1", 3), ("s5", "p4", "a4", 2))
    ]


def test_splits_are_by_patient_complete_and_hashed(tmp_path: Path) -> None:
    studies = many(400)
    root = prepared(tmp_path, studies, {accession: 1 for _, _, accession in studies})
    build_manifest(root, tmp_path / "out", PARAMS, EXPORT)
    table = pd.read_parquet(tmp_path / "out/manifest.parquet")
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    recorded = json.loads((tmp_path / "out/splits.json").read_text())
    assert recorded.pop("hash") == split_hash(recorded)
    assert sorted(study for ids in recorded.values() for study in ids) == table["study_id"].tolist()
    for split, ids in recorded.items():
        assert ids == table.loc[table["split"] == split, "study_id"].tolist()
    # 200 patients at 0.2: 40 expected, standard deviation 5.7; four of them.
    for split in ("validation", "test"):
        assert 17 < table[table["split"] == split]["patient_id"].nunique() < 63


def test_new_patients_move_nobody_and_the_seed_moves_some() -> None:
    before = {f"p{i}": assign_split(f"p{i}", PARAMS) for i in range(50)}
    larger = PARAMS.model_copy(update={"test_fraction": 0.4})
    for patient, split in before.items():
        assert assign_split(patient, PARAMS) == split
        if split == "test":  # more test patients: the old ones stay
            assert assign_split(patient, larger) == "test"
    other = PARAMS.model_copy(update={"seed": 1})
    assert before != {patient: assign_split(patient, other) for patient in before}


def test_split_hash_sees_a_moved_study_but_not_the_order() -> None:
    splits = {"train": ["a", "b"], "validation": ["c"], "test": []}
    assert split_hash(splits) == split_hash({**splits, "train": ["b", "a"]})
    assert split_hash(splits) != split_hash({"train": ["a"], "validation": ["b", "c"], "test": []})


def test_mistakes_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no .*convert_volumes/dicom_export/manifest.*: run `dvc repro`"
    ):
        build_manifest(tmp_path / "nowhere", tmp_path / "out", PARAMS, EXPORT)
    root = prepared(tmp_path / "a", [("s", "p", "a")], {"other": 1})
    with pytest.raises(ValueError, match=r"no pair left for training"):
        build_manifest(root, tmp_path / "out", PARAMS, EXPORT)

    path = root / "pack_volumes/dicom_export/manifest.parquet"
    table = pd.read_parquet(path)
    table.drop(columns="volume_sha256").to_parquet(path)
    with pytest.raises(ValueError, match=r"lacks the column 'volume_sha256'.*dvc repro --force"):
        build_manifest(root, tmp_path / "out", PARAMS, EXPORT)
    table.assign(volume=None).to_parquet(path)
    with pytest.raises(ValueError, match=r"has an empty 'volume'"):
        build_manifest(root, tmp_path / "out", PARAMS, EXPORT)
    pd.concat([table, table]).to_parquet(path)
    with pytest.raises(ValueError, match=r"has study_id s twice"):
        build_manifest(root, tmp_path / "out", PARAMS, EXPORT)
    table.assign(study_id="unknown").to_parquet(path)
    with pytest.raises(ValueError, match=r"has an empty 'patient_id'"):
        build_manifest(root, tmp_path / "out", PARAMS, EXPORT)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=4),
        st.tuples(st.sampled_from("pqr"), st.sampled_from(["", *"uvwxyz"]), st.integers(1, 3)),
        min_size=1,
        max_size=12,
    ),
    st.sets(st.sampled_from("stuvwxyz")),
)
def test_the_join_is_that_of_a_loop(
    studies: dict[str, tuple[str, str, int]], accessions: set[str]
) -> None:
    """Whatever was added, edited or removed: the pairs and fates of a plain loop over studies."""
    pairs, fates = [], {f"report-{a}": "report_without_study" for a in accessions}
    for study, (patient, accession, slices) in sorted(studies.items()):
        rivals = [(-n, s, p) for s, (p, a, n) in studies.items() if a == accession]
        if accession not in accessions:
            fates[study] = "study_without_report"
        elif len({p for _, _, p in rivals}) > 1:
            fates[study] = fates[f"report-{accession}"] = "mixed_patients"
        elif min(rivals)[:2] != (-slices, study):
            fates[study] = "not_chosen"
        else:
            pairs.append((study, patient, f"report-{accession}"))
            fates[study] = fates[f"report-{accession}"] = ""
    rows = [(s, p, a, n) for s, (p, a, n) in studies.items()]
    table = pd.DataFrame(rows, columns=["study_id", "patient_id", "accession_id", "num_slices"])
    ids = [f"report-{a}" for a in accessions]
    reports = pd.DataFrame({"report_id": ids, "accession_id": list(accessions)}, dtype="str")
    ledger = Ledger("build_manifest", "study or report")
    found = join(table, reports, ledger)
    assert list(found[["study_id", "patient_id", "report_id"]].itertuples(index=False)) == pairs
    assert {entry.input_id: str(entry.reason or "") for entry in ledger.entries} == fates


def test_lists_are_written_as_json_writes_them() -> None:
    for texts in ([], ["a"], ["a", "b c"], ['quo"ted', "b"], ["ümlaut"]):
        column = pa.array(texts, pa.large_string())
        assert json_list(column) == json.dumps(texts)
    sliced = pa.array(["x", "a", "b", "y"], pa.large_string())[1:3]
    assert json_list(sliced) == '["a", "b"]'
