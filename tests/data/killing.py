"""A stage that is killed in the middle of its work."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil


def kill_stage(code: str, arguments: list[str], num_done: Callable[[], int], at_least: int) -> None:
    """Run Python ``code``; SIGKILL it once so many results are there. Its workers must end too."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while num_done() < at_least:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == [], "workers outlive a killed stage"
    assert len(gone) >= 2
