import json
import shutil
from pathlib import Path

import pytest

from mg3d.params import WriteCohort
from mg3d.phantom.cohort import LAYOUTS, MARKER, digest, write_cohort

# The cohort's bytes for conftest.TINY. They change when the phantom changes (then `data.dvc` must
# be renewed too) and must not change with the machine. JPEG depends on the pinned Pillow.
GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "golden_cohort.json").read_text())


def parts(cohort: Path) -> dict[str, str]:
    tasks = sorted((cohort / "downstream").iterdir())
    return {
        folder.relative_to(cohort).as_posix(): digest(folder)
        for folder in (cohort / "dicom", cohort / "ct_rate", cohort / "ctrg_chest", *tasks)
    } | {"all": digest(cohort)}


def test_golden(cohort: Path) -> None:
    assert parts(cohort) == GOLDEN


def test_bytes_depend_neither_on_workers_nor_on_simd(
    cohort: Path, tiny: WriteCohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two fresh processes, which see a plainer processor: no AVX in numpy, no SIMD in libjpeg."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    features = [name for name in __cpu_dispatch__ if __cpu_features__[name]]
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", " ".join(features))
    monkeypatch.setenv("JSIMD_FORCENONE", "1")
    again = tmp_path / "data"
    write_cohort(again, tiny.model_copy(update={"num_workers": 2}))
    assert digest(again) == digest(cohort)
    assert (again / MARKER).read_bytes() == (cohort / MARKER).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


SMALL = WriteCohort(
    num_patients=4,
    num_segmentation_cases=8,
    num_labelled_cases=8,
    num_retrieval_cases=8,
    num_ct_rate_scans=1,
    num_ctrg_studies=1,
    shape_voxels=(16, 16, 16),
    num_workers=1,
)


def test_seed_changes_everything(tmp_path: Path) -> None:
    digests = set()
    for seed in (0, 1):
        write_cohort(tmp_path / str(seed), SMALL.model_copy(update={"seed": seed}))
        digests |= set(parts(tmp_path / str(seed)).values())
    assert len(digests) == 2 * len(GOLDEN)


def test_refuses_what_it_did_not_write(tmp_path: Path) -> None:
    mine = tmp_path / "data"
    mine.mkdir()
    (mine / "precious.nii.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"did not write.*move .*data away"):
        write_cohort(mine, SMALL)
    assert (mine / "precious.nii.gz").read_bytes() == b"x"
    with pytest.raises(ValueError, match="is a file"):
        write_cohort(mine / "precious.nii.gz", SMALL)


def test_replaces_its_own_but_not_with_additions(
    cohort: Path, tiny: WriteCohort, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    shutil.copytree(cohort, out)
    write_cohort(out, SMALL)
    assert digest(out) != digest(cohort)
    own = out / "downstream" / "mine" / "cases.csv"
    own.parent.mkdir()
    own.write_text("case\n")
    with pytest.raises(ValueError, match="added, removed or changed"):
        write_cohort(out, SMALL)
    assert own.exists()


def test_an_interrupted_run_leaves_nothing_and_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mg3d.phantom import cohort as module

    out = tmp_path / "data"

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.ctrg_report, "write_case", crash)
        with pytest.raises(KeyboardInterrupt):
            write_cohort(out, SMALL)
    assert not out.exists()
    write_cohort(out, SMALL)
    assert (out / MARKER).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(tmp_path / "data", SMALL)
    total = sum(layout.count(SMALL) for layout in LAYOUTS.values())
    assert f"write_cohort: cases: {total}/{total}" in capsys.readouterr().err
