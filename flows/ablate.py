"""The ablation as a child process, which starts its cells itself, each a pre-training."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import child
from flows.command_line import main
from flows.form import Overrides, Profile
from flows.gpu import gpu_slots
from mg3d import paths
from mg3d.params import load_params, resolve


@task(retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE)
def run_cells(prepared: Path, out: Path, params: Path) -> Path:
    """A second try finds the finished cells."""
    return child.mg3d_to_the_end("ablate", prepared, "--out", out, "--params", params)


@flow
def ablate(
    params: Profile = paths.PARAMS,
    prepared: Path = paths.PREPARED,
    out: Path = paths.RUNS,
    overrides: Overrides = {},  # noqa: B006
) -> Path:
    """Pre-train with the objective's terms added one by one; return the file of the result.

    Args:
        params: A complete params file; its section `ablate` says which seeds and how many steps.
        prepared: What the prepare flow wrote.
        out: Where the runs' folders go, and the ablation's beside them.
        overrides: `section.key`: value, instead of the file's.
    """
    params = resolve(params, overrides)  # a mistake in the file is not worth a second try
    tree = load_params(params)
    with gpu_slots(tree.pretrain.num_ranks * tree.ablate.num_parallel):
        return run_cells(prepared, out, params)


if __name__ == "__main__":
    main(ablate)
