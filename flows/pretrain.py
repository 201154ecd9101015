"""Pre-training as a child process, which starts its ranks itself."""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import child
from flows.command_line import main
from flows.form import Overrides, Profile, given
from flows.gpu import gpu_slots
from mg3d import paths
from mg3d.params import load_params, resolve


@task(retries=1, retry_delay_seconds=5, cache_policy=NO_CACHE)
def train(prepared: Path, out: Path, params: Path) -> Path:
    """A second try goes on from the newest checkpoint."""
    return child.mg3d_to_the_end("pretrain", prepared, "--out", out, "--params", params)


@flow
def pretrain(
    params: Profile = paths.PARAMS,
    prepared: Path = paths.PREPARED,
    out: Path = paths.RUNS,
    seed: int | None = None,
    overrides: Overrides = {},  # noqa: B006
) -> Path:
    """Pre-train on prepared/ and return the final checkpoint's folder.

    Args:
        params: A complete params file.
        prepared: What the prepare flow wrote.
        out: Where the run's folder goes; its name follows from data and params.
        seed: Of the training; the file's when left out.
        overrides: `section.key`: value, instead of the file's.
    """
    # a mistake in the file is not worth a second try
    params = resolve(params, given(overrides, pretrain__seed=seed))
    with gpu_slots(load_params(params).pretrain.num_ranks):
        return train(prepared, out, params)


if __name__ == "__main__":
    main(pretrain)
