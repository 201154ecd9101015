"""What every flow does: run `mg3d` or `dvc` as a child and show its lines.

A line goes once to this process's terminal and once to the run's log, which the UI shows. A failing
child raises :class:`mg3d.launch.CommandError` with its last lines.
"""

import logging
import sys
from pathlib import Path

from prefect.logging.handlers import APILogHandler

from mg3d import launch

MG3D = (sys.executable, "-m", "mg3d.cli")
DVC = (sys.executable, "-m", "dvc")

_ui = logging.Logger(__name__, logging.INFO)  # outside the logging tree: the terminal has the line
_ui.addHandler(APILogHandler())


def mg3d(*arguments: str | Path, label: str = "") -> str:
    """Run ``mg3d <arguments>``; its last line. ``label`` starts each line shown."""
    return _run([*MG3D, *map(str, arguments)], label)


def dvc(*arguments: str | Path) -> str:
    """Run ``dvc <arguments>``; its last line."""
    return _run([*DVC, *map(str, arguments)])


def _run(command: list[str], label: str = "") -> str:
    def show(line: str) -> None:
        print(label + line, flush=True)
        _ui.info("%s", line)

    return launch.run(command, show)
