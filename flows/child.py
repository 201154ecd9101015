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


def mg3d(*arguments: str | Path, label: str = "", env: dict[str, str] | None = None) -> str:
    """Run ``mg3d <arguments>``; its last line. ``label`` starts each line shown; ``env`` is added
    to the environment."""
    return _run([*MG3D, *map(str, arguments)], label, env)


def mg3d_to_the_end(*arguments: str | Path) -> Path:
    """:func:`mg3d`, started again as often as it was told to stop: it goes on where it was.

    Being told to stop is no failed try. Returns the path that its last line is.
    """
    while True:
        try:
            return Path(mg3d(*arguments))
        except launch.CommandError as error:
            if error.code != launch.RESUMABLE:
                raise


def dvc(*arguments: str | Path) -> str:
    """Run ``dvc <arguments>``; its last line."""
    return _run([*DVC, *map(str, arguments)])


def _run(command: list[str], label: str = "", env: dict[str, str] | None = None) -> str:
    def show(line: str) -> None:
        print(label + line, flush=True)
        _ui.info("%s", line)

    return launch.run(command, show, env)
