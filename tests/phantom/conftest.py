"""One tiny cohort for all tests of the phantom."""

from pathlib import Path

import pytest

from mg3d.params import WriteCohort
from mg3d.phantom.cohort import write_cohort

TINY = WriteCohort(
    seed=3,
    num_patients=6,
    num_segmentation_cases=10,
    num_labelled_cases=10,
    num_retrieval_cases=18,
    num_ct_rate_scans=3,
    num_ctrg_studies=4,
    shape_voxels=(16, 32, 32),
    num_workers=1,
)


@pytest.fixture(scope="session")
def tiny() -> WriteCohort:
    return TINY


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    write_cohort(out, TINY)
    return out
