"""A command that cannot outlive the process that asked for it, however that one dies.

``python -m mg3d.tether PARENT_PID GRACE_S COMMAND [ARGUMENT ...]`` runs the command and ends as it
ends: same exit code, same signal. :func:`mg3d.launch.run` starts every command this way on Linux.
Two favours of the kernel make it hold: this process is told by SIGTERM when its parent dies, by
SIGKILL too, and it adopts what its descendants leave behind (torchrun's ranks lead sessions of
their own). So whatever happens above or below, all of them end: SIGTERM, then SIGKILL to what is
left after the grace.
"""

import ctypes
import os
import signal
import subprocess
import sys
from typing import Any

from mg3d.launch import end_family

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Run the command of the command line."""
    parent, grace_s, *command = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _leave)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before the kernel was asked
        sys.exit(128 + signal.SIGTERM)
    process = subprocess.Popen(
        command,
        start_new_session=True,
        restore_signals=True,
        preexec_fn=_end_with_this_process,  # this process has no other thread
    )
    try:
        process.wait()
    finally:
        end_family(process, float(grace_s), os.getpid())
        _end_as(process.returncode)


def _leave(number: int, _: Any) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)  # told once is told; SIGKILL ends the patience
    raise SystemExit(128 + number)


def _end_with_this_process() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _end_as(code: int) -> None:
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
