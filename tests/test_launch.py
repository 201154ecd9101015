"""Commands end whole: their lines, their exit code, and no orphan."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mg3d import launch

# A child with a grandchild in its own session, as torchrun's ranks are; writes both pids.
FAMILY = """
import os, signal, subprocess, sys, time
from pathlib import Path
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
deafen = "signal.signal(15, signal.SIG_IGN)" if "deaf" in sys.argv else "pass"
sleep = [sys.executable, "-c", "import signal, time; %s; print(1); time.sleep(60)" % deafen]
children = [subprocess.Popen(sleep, start_new_session=new) for new in (False, True)]
Path(sys.argv[1]).write_text(" ".join(map(str, [os.getpid(), *(c.pid for c in children)])))
time.sleep(60)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_lines_come_in_order_and_the_last_one_of_stdout_is_returned() -> None:
    lines: list[str] = []
    code = "import sys; print('one'); print('runs/x'); print(); print('warn', file=sys.stderr)"
    assert launch.run(python(code), lines.append) == "runs/x"
    assert [line for line in lines if line != "warn"] == ["one", "runs/x", ""]
    assert "warn" in lines


def test_a_line_is_seen_before_the_command_ends(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        "import sys, time, pathlib\nprint('ready')\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)\nprint('done')"
    )
    # The child ends only after its first line was seen here: a buffered line would hang the test.
    assert launch.run(python(code, str(go)), lambda line: go.touch()) == "done"


def test_a_progress_bar_is_seen_as_it_moves() -> None:
    lines: list[str] = []
    launch.run(python(r"import sys; sys.stderr.write('10%\r20%\r30%\n')"), lines.append)
    assert lines == ["10%", "20%", "30%"]


def test_output_that_is_not_utf8_is_shown_not_fatal() -> None:
    code = r"import sys; sys.stdout.buffer.write(b'caf\xe9\n')"
    assert launch.run(python(code), lambda line: None) == "caf\N{REPLACEMENT CHARACTER}"


def test_env_is_added() -> None:
    code = "import os; print(os.environ['ADDED'], 'PATH' in os.environ)"
    assert launch.run(python(code), lambda line: None, env={"ADDED": "1"}) == "1 True"


def test_a_failure_names_the_code_and_the_last_lines_of_both_streams() -> None:
    code = (
        "import sys\nfor i in range(30): print('line', i)\n"
        "sys.stdout.flush(); print('the cause', file=sys.stderr); sys.exit(3)"
    )
    with pytest.raises(launch.CommandError, match="exited with code 3") as caught:
        launch.run(python(code), lambda line: None)
    message = str(caught.value)
    assert caught.value.code == 3
    assert message.endswith("| line 29\n  | the cause")  # however the two streams were scheduled
    assert "| line 10\n" in message
    assert "| line 9\n" not in message
    assert message.count("\n  | ") == launch.NUM_LAST_LINES + 1


def test_a_failure_by_signal_names_it_and_asks_about_memory() -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(launch.CommandError, match=r"ended by Killed \(out of memory\?\)"):
        launch.run(python(code), lambda line: None)


def test_a_missing_command_is_an_ordinary_error() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        launch.run(["no-such-command"])


@pytest.mark.parametrize("mood", ["docile", "deaf"])
def test_an_exception_ends_all_descendants(tmp_path: Path, mood: str) -> None:
    pids = tmp_path / "pids"

    def interrupt(line: str) -> None:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch.run(python(FAMILY, str(pids), mood), interrupt, grace_s=0.5)
    family = list(map(int, pids.read_text().split()))
    wait_until(lambda: not any(map(alive, family)), 2.0)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_parent_ends_the_child(tmp_path: Path, number: signal.Signals) -> None:
    pids = tmp_path / "pids"
    heard = (  # a test run in the background, or under nohup, hands down signals that are ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    )
    parent = subprocess.Popen(
        python(
            f"{heard}from mg3d import launch; "
            f"launch.run({python(FAMILY, str(pids))!r}, grace_s=0.5)",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    parent.send_signal(number)
    code = parent.wait(timeout=15)
    assert code in (128 + number, -number)
    assert not any(map(alive, map(int, pids.read_text().split())))


@pytest.mark.skipif(sys.platform != "linux", reason="a favour of Linux")
@pytest.mark.parametrize("mood", ["docile", "deaf"])
def test_sigkill_of_the_parent_ends_all_descendants(tmp_path: Path, mood: str) -> None:
    pids = tmp_path / "pids"
    code = f"from mg3d import launch; launch.run({python(FAMILY, str(pids), mood)!r}, grace_s=0.5)"
    parent = subprocess.Popen(python(code), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    parent.kill()
    parent.wait(timeout=15)
    family = list(map(int, pids.read_text().split()))
    wait_until(lambda: not any(map(alive, family)))


@pytest.mark.skipif(sys.platform != "linux", reason="a favour of Linux")
def test_sigkill_of_a_child_ends_its_descendants_in_other_sessions(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def kill(line: str) -> None:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        with suppress(ProcessLookupError):  # there are two lines
            os.kill(int(pids.read_text().split()[0]), signal.SIGKILL)

    with pytest.raises(launch.CommandError, match="ended by Killed"):
        launch.run(python(FAMILY, str(pids)), kill, grace_s=0.5)
    assert not any(map(alive, map(int, pids.read_text().split())))


def test_what_a_finished_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid)"
    )
    start = time.monotonic()
    left_behind = int(launch.run(python(code), lambda line: None))
    assert time.monotonic() - start < 20  # the pipe that it holds is not waited for
    wait_until(lambda: not alive(left_behind), 2.0)


def test_threads_end_together() -> None:
    failures: list[BaseException] = []
    ready = threading.Event()

    def work() -> None:
        try:
            launch.run(python("import time; print(1); time.sleep(60)"), lambda line: ready.set())
        except RuntimeError as error:
            failures.append(error)

    def work_off_a_queue() -> None:
        work()
        work()

    thread = threading.Thread(target=work_off_a_queue)

    def leave_while_it_runs() -> None:
        with launch.ended_together():
            thread.start()
            assert ready.wait(15)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_while_it_runs()
    thread.join(timeout=15)
    assert not thread.is_alive()
    assert "ended by Terminated" in str(failures[0])
    assert "was not started" in str(failures[1])
    with launch.ended_together():
        assert launch.run(python("print('again')"), lambda line: None) == "again"


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    launch.run(python("pass"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_torchrun_starts_the_cli_on_ranks_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    def fake(command: list[str], on_line: object, env: dict[str, str], grace_s: float) -> str:
        seen.update(command=command, env=env)
        return "runs/x/checkpoints/step-000001"

    monkeypatch.setattr(launch, "run", fake)
    assert launch.torchrun(["pretrain", "prepared"], 2, 3) == "runs/x/checkpoints/step-000001"
    elastic = "-m mg3d.elastic --standalone 2"
    assert " ".join(seen["command"][1:]) == f"{elastic} mg3d.cli pretrain prepared"
    assert seen["command"][0] == sys.executable
    assert seen["env"] == {"OMP_NUM_THREADS": "3"}


def test_ranks_know_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (launch.is_rank(), launch.is_rank_zero()) == (False, True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    assert (launch.is_rank(), launch.is_rank_zero()) == (True, False)
    monkeypatch.setenv("RANK", "0")
    assert (launch.is_rank(), launch.is_rank_zero()) == (True, True)


def test_importing_launch_does_not_import_torch() -> None:
    code = "import sys; import mg3d.launch; print('torch' in sys.modules)"
    assert launch.run(python(code), lambda line: None, env=dict(os.environ)) == "False"


def test_a_process_over_its_memory_limit_fails_and_others_do_not() -> None:
    code = (
        "from mg3d.launch import limit_memory; limit_memory({limit}); "
        "import numpy; print(numpy.ones(2**26).sum())"  # 0.5 GB
    )
    assert launch.run([sys.executable, "-c", code.format(limit=1.0)]) == "67108864.0"
    with pytest.raises(launch.CommandError, match=r"Unable to allocate 512\. MiB"):
        launch.run([sys.executable, "-c", code.format(limit=0.25)])
