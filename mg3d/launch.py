"""Run a command in its own process group: stream its lines, end it whole, fail with its last ones.

GPU work, DVC and everything a flow starts is a child process (design section 4). A child that
outlives its parent keeps a GPU and a lock, so whatever ends :func:`run` (an error, Ctrl-C, SIGTERM,
a cancelled flow) ends the child and all its descendants too. On Linux so does SIGKILL of this
process: see :mod:`mg3d.tether`.
"""

import errno
import os
import queue
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import psutil

NUM_LAST_LINES = 20
GRACE_S = 15.0
RANKS_GRACE_S = 45.0  # torchrun's agent gives its ranks 30
TETHER_S = 5.0  # more than the grace it gives: to end what is left

#: Exit code of a training that was told to stop: start it again and it goes on (EX_TEMPFAIL).
RESUMABLE = 75
UNBUFFERED = {"PYTHONUNBUFFERED": "1"}

#: By default glibc gives every freed tensor back to the kernel and faults its pages in again: that
#: was a third of a training step's CPU time. Keep the memory, and back it with huge pages.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "THP_MEM_ALLOC_ENABLE": "1",
}

#: Open files that the families of commands hold too: a lock in one is held until all have ended.
held_files: set[int] = set()

_live: set[subprocess.Popen[str]] = set()
_ending = False  # see ended_together
_starting = threading.Lock()


@dataclass(frozen=True)
class Nodes:
    """Machines that train together; each runs the same command, with its own ``rank``.

    ``endpoint`` is HOST:PORT of node 0, where they find each other (torchrun's c10d rendezvous).
    Raises ValueError for a rank or an endpoint that cannot be.
    """

    count: int = 1
    rank: int = 0
    endpoint: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"node rank {self.rank} of {self.count} nodes: give each node its own of "
                f"0 to {max(0, self.count - 1)}"
            )
        host, _, port = self.endpoint.rpartition(":")
        if self.count > 1 and not (host and port.isdigit()):
            raise ValueError(
                f"rendezvous endpoint {self.endpoint!r} of {self.count} nodes: "
                "use HOST:PORT of node 0, e.g. node0:29400"
            )

    @property
    def options(self) -> list[str]:
        """torchrun's."""
        if self.count == 1:
            return ["--standalone"]
        return [
            f"--nnodes={self.count}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={self.endpoint}",
            "--rdzv-id=mg3d",
            f"--rdzv-conf=is_host={str(self.rank == 0).lower()}",
        ]


ONE_NODE = Nodes()


class CommandError(RuntimeError):
    """A command ended with a ``code`` other than 0 (negative: a signal); its last lines."""

    def __init__(self, command: Sequence[str], code: int, lines: Sequence[str]) -> None:
        self.code = code
        how = f"exited with code {code}" if code > 0 else f"was ended by {signal.strsignal(-code)}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        last = "".join(f"\n  | {line}" for line in lines)
        super().__init__(f"`{shlex.join(command)}` {how}{hint}; its last lines:{last}")


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def limit_memory(max_memory_gb: float | None) -> None:
    """Let this process and its children hold so much private memory; more fails to be allocated.

    CUDA maps host memory of its own: on a GPU leave room for it, or set no limit.
    """
    if max_memory_gb is not None:
        limit = int(max_memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run(
    command: Sequence[str],
    on_line: Callable[[str], None] = show,
    env: dict[str, str] | None = None,
    grace_s: float = GRACE_S,
) -> str:
    """Run ``command`` and return the last line, blank ones aside, of its standard output.

    ``on_line`` gets every line of both streams as it comes, in the calling thread; ``env`` is added
    to the environment. Raises CommandError, with the last lines of stdout and then of stderr, for
    an exit code other than 0. Any exception (one of ``on_line`` too), KeyboardInterrupt or SIGTERM
    ends the child with its descendants: SIGTERM, and SIGKILL to what is left after ``grace_s``.
    """
    last = {is_stdout: deque[str](maxlen=NUM_LAST_LINES) for is_stdout in (True, False)}
    with _sigterm_raises():
        process = _start(command, ALLOCATOR | os.environ | UNBUFFERED | (env or {}), grace_s)
        try:
            for line, is_stdout in _lines(process):
                on_line(line)
                if line.strip():
                    last[is_stdout].append(line)
            process.wait()
        finally:
            end_family(process, grace_s + TETHER_S)
            _live.discard(process)
    if process.returncode:
        raise CommandError(command, process.returncode, [*last[True], *last[False]])
    return last[True][-1] if last[True] else ""


def torchrun(
    module_args: Sequence[str],
    num_ranks: int,
    num_threads_per_rank: int,
    on_line: Callable[[str], None] = show,
    module: str = "mg3d.cli",
    nodes: Nodes = ONE_NODE,
) -> str:
    """:func:`run` of ``mg3d <module_args>`` as ``num_ranks`` ranks, an equal share on each node.

    Raises ValueError if the nodes cannot share the ranks.

    A rank that dies ends the others within 60 s; the CommandError names it and ends with its last
    lines. SIGTERM, to this process or to any rank, lets the ranks save what they have, and then
    leaves by SystemExit with code RESUMABLE.
    """
    of_node, rest = divmod(num_ranks, nodes.count)
    if rest or not of_node:
        raise ValueError(
            f"{num_ranks} ranks on {nodes.count} nodes: make pretrain.num_ranks a multiple of "
            f"{nodes.count}"
        )
    elastic = [sys.executable, "-m", "mg3d.elastic", *nodes.options, str(of_node), module]
    command = [*elastic, *module_args]
    env = {"OMP_NUM_THREADS": str(num_threads_per_rank)}
    try:
        return run(command, on_line, env=env, grace_s=RANKS_GRACE_S)
    except SystemExit as left:
        raise SystemExit(RESUMABLE if left.code == 128 + signal.SIGTERM else left.code) from None
    except CommandError as error:
        if error.code == RESUMABLE:
            raise SystemExit(RESUMABLE) from None
        raise


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def is_rank_zero() -> bool:
    """Whether this process is rank 0, or no rank at all."""
    return not is_rank() or os.environ["RANK"] == "0"


@contextmanager
def ended_together(grace_s: float = GRACE_S) -> Iterator[None]:
    """If an exception leaves the block, end the commands that other threads run, and start no more.

    A signal raises in the main thread only; a pool waits for its threads before that exception
    goes on, and they wait for their commands or fetch the next one from the queue.
    """
    global _ending
    _ending = False
    with _sigterm_raises():
        try:
            yield
        except BaseException:
            with _starting:
                _ending = True
                started = list(_live)
            for process in started:
                end_family(process, grace_s + TETHER_S)
            raise


def _start(command: Sequence[str], env: dict[str, str], grace_s: float) -> subprocess.Popen[str]:
    if shutil.which(command[0], path=env.get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    if sys.platform == "linux":
        tether = [sys.executable, "-m", "mg3d.tether", str(os.getpid()), str(grace_s)]
        command = [*tether, *command]
    with _starting:
        if _ending and not _in_main_thread():
            raise RuntimeError(f"`{shlex.join(command)}` was not started: others were interrupted")
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=tuple(held_files),
        )
        _live.add(process)
        return process


def _lines(process: subprocess.Popen[str]) -> Iterator[tuple[str, bool]]:
    """(line, whether from stdout) of both streams as they come, until both are closed."""
    lines: queue.SimpleQueue[tuple[str | None, bool]] = queue.SimpleQueue()

    def read(stream: IO[str], is_stdout: bool) -> None:
        with stream:
            for line in stream:  # universal newlines: a progress bar's carriage return ends one too
                lines.put((line.rstrip("\n"), is_stdout))
        lines.put((None, is_stdout))

    assert process.stdout is not None
    assert process.stderr is not None
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=read, args=(stream, stream is process.stdout), daemon=True).start()
    num_open = 2
    while num_open:
        try:
            line, is_stdout = lines.get(timeout=1.0)
        except queue.Empty:
            if process.poll() is not None:
                return  # something it left behind holds the pipe; run() ends that
            continue
        if line is None:
            num_open -= 1
        else:
            yield line, is_stdout


def end_family(process: subprocess.Popen[Any], grace_s: float, head: int | None = None) -> None:
    """SIGTERM to the group; what ignores it, or leads another one (torchrun's ranks), is killed.

    ``head``: whose descendants the family is, if not those of ``process``.
    """
    family = _family(head or process.pid)
    _signal_group(process, signal.SIGTERM)
    if process.poll() is not None:  # nobody is left to tell the others
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
    deadline = time.monotonic() + grace_s
    try:
        while process.poll() is None or any(map(_is_alive, family)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:  # a second Ctrl-C ends the patience, not the clean-up
        for member in filter(_is_alive, {*family, *_family(head or process.pid)}):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _family(head: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(head).children(recursive=True)
    return []


def _signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _is_alive(member: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP, where they would end this process at once, into SystemExit."""

    def leave(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    found = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    numbers = found if _in_main_thread() else []
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
