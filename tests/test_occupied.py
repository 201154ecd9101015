"""One process at a time in a folder; the lock lives as long as what its holder started."""

import subprocess
import sys
import time
from pathlib import Path

from mg3d.occupied import is_occupied, occupied

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom mg3d import launch\n"
    "from mg3d.occupied import occupied\n"
    "with occupied(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    launch.run([sys.executable, '-c', sys.argv[2]], grace_s=30.0)\n"
)
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf'); time.sleep(3)"


def holder(folder: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_says_for_whom(tmp_path: Path, capsys) -> None:
    assert not is_occupied(tmp_path)
    first = holder(tmp_path, "import time; time.sleep(1.5)")
    assert is_occupied(tmp_path)
    with occupied(tmp_path):
        first.wait(timeout=15)
    assert f"waiting: {tmp_path} is being worked on by process {first.pid} on" in (
        capsys.readouterr().out
    )
    assert not is_occupied(tmp_path)


def test_it_is_held_until_the_children_of_a_killed_holder_have_ended(tmp_path: Path) -> None:
    first = holder(tmp_path, DEAF)
    assert first.stdout is not None
    assert first.stdout.readline() == "deaf\n"
    first.kill()
    first.wait(timeout=15)
    start = time.monotonic()
    assert is_occupied(tmp_path)
    with occupied(tmp_path):
        assert time.monotonic() - start > 1.0
