"""What every flow does: run `mg3d` or `dvc` as a child and show its lines.

A line goes once to this process's terminal and once to the run's log, which the UI shows. A failing
child raises :class:`mg3d.launch.CommandError` with its last lines.
"""

import logging
import sys
import time
from pathlib import Path

from prefect.logging.handlers import APILogHandler

from mg3d import launch

MG3D = (sys.executable, "-m", "mg3d.cli")
DVC = (sys.executable, "-m", "dvc")
pause = time.sleep

DVC_WAIT_S = 24 * 3600.0
DVC_PAUSE_S = 60.0
#: DVC has no exit code of its own for its two locks, of the repository and of a stage's files.
DVC_IS_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")

_ui = logging.Logger(__name__, logging.INFO)  # outside the logging tree: the terminal has the line
_ui.addHandler(APILogHandler())


def mg3d(*arguments: str | Path, label: str = "", env: dict[str, str] | None = None) -> str:
    """Run ``mg3d <arguments>``; its last line. ``label`` starts each line shown; ``env`` is added
    to the environment."""
    return _run([*MG3D, *map(str, arguments)], label, env)


def mg3d_to_the_end(*arguments: str | Path) -> Path:
    """:func:`mg3d`, started again as often as it was told to stop: it goes on where it was.

    Being told to stop is no failed try. If the flow is cancelled, the child has the time that ranks
    need to save what they have. Returns the path that its last line is.
    """
    while True:
        try:
            return Path(_run([*MG3D, *map(str, arguments)], grace_s=launch.RANKS_GRACE_S))
        except launch.CommandError as error:
            if error.code != launch.RESUMABLE:
                raise


def dvc(*arguments: str | Path) -> str:
    """Run ``dvc <arguments>``; its last line. Another `dvc` is waited for, DVC_WAIT_S at most."""
    deadline = time.monotonic() + DVC_WAIT_S
    pause_s = 1.0
    while True:
        try:
            return _run([*DVC, *map(str, arguments)])
        except launch.CommandError as error:
            if not any(words in str(error) for words in DVC_IS_BUSY):
                raise
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"another dvc has been at work in this folder for {DVC_WAIT_S:.0f} s: "
                    f"wait for it or end it, then start this again\n{error}"
                ) from error
        _show(f"waiting: another dvc is at work in this folder; next try in {pause_s:.0f} s")
        pause(pause_s)
        pause_s = min(2 * pause_s, DVC_PAUSE_S)


def _run(
    command: list[str],
    label: str = "",
    env: dict[str, str] | None = None,
    grace_s: float = launch.GRACE_S,
) -> str:
    return launch.run(command, lambda line: _show(line, label), env, grace_s=grace_s)


def _show(line: str, label: str = "") -> None:
    print(label + line, flush=True)
    _ui.info("%s", line)
