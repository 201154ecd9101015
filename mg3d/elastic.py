"""torchrun's agent, which also says which rank failed, how, and with which last words.

``python -m mg3d.elastic OPTION ... NUM_RANKS MODULE [ARGUMENT ...]`` starts ``python -m MODULE
ARGUMENT ...`` that many times on this machine; the options say whether other machines take part
(:attr:`mg3d.launch.Nodes.options`), each of which names the failures of its own ranks. When a rank
dies the agent ends the others: SIGTERM at once, SIGKILL after 30 s. The exit code is that of the
rank that failed first (128 + n for signal n).
"""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mg3d.launch import RESUMABLE

NUM_LAST_LINES = 15  # fewer than mg3d.launch keeps, so that all of them are in its error


def main() -> None:
    """Run the ranks to their end."""
    options = list(takewhile(lambda word: word.startswith("--"), sys.argv[1:]))
    num_ranks, module, *arguments = sys.argv[1 + len(options) :]
    os.environ.setdefault("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "rank ${rank}: ")
    with tempfile.TemporaryDirectory(prefix="mg3d-ranks-") as logs:
        tee = ["--tee", "3", "--log-dir", logs]
        command = [*options, "--nproc-per-node", num_ranks, *tee, "-m", module, *arguments]
        try:
            run.run(run.parse_args(command))
        except ChildFailedError as error:
            sys.exit(_tell(error.failures, Path(logs)))
        except SignalException:  # its ranks have saved what they could
            sys.exit(RESUMABLE)


def _tell(failures: Mapping[int, ProcessFailure], logs: Path) -> int:
    """Name the culprit on stderr with its last lines; its exit code.

    One rank's death breaks the others' connections, and the agent ends them by SIGTERM. So of
    several failures the culprit is one that another signal ended, else the one whose last line is
    the oldest.
    """

    def errors(rank: int) -> Path:
        return next(logs.glob(f"*/attempt_*/{failures[rank].local_rank}/stderr.log"))

    def suspicion(rank: int) -> tuple[bool, bool, float]:
        code = failures[rank].exitcode
        return code == -signal.SIGTERM, code > 0, errors(rank).stat().st_mtime

    rank = min(failures, key=suspicion)
    code = failures[rank].exitcode
    how = f"exited with code {code}" if code > 0 else f"was ended by {signal.strsignal(-code)}"
    lines = [line for line in errors(rank).read_text(errors="replace").splitlines() if line.strip()]
    last = "".join(f"\n  {line}" for line in lines[-NUM_LAST_LINES:])
    print(f"rank {rank} {how}; its last lines:{last}", file=sys.stderr, flush=True)
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    main()
