"""GPUs as slots that all flow runs of a server share: `prefect gcl create gpu --limit 4`.

Without a limit of that name (no GPU, or one run at a time) nothing is counted. A slot is a lease
that its holder renews: one whose holder was killed is free again after LEASE_S.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

LIMIT = "gpu"
LEASE_S = 120.0


@contextmanager
def gpu_slots(num: int) -> Iterator[None]:
    """Hold ``num`` slots for the block; wait for them. Raises ValueError if there are fewer."""
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(LIMIT)
        except ObjectNotFound:
            limit = None
    if limit is None or not limit.active:
        yield
        return
    if num > limit.limit:
        raise ValueError(
            f"{num} GPU slots are needed and the limit `{LIMIT}` has {limit.limit}: "
            f"`prefect gcl update {LIMIT} --limit {num}`, or fewer pretrain.num_ranks"
        )
    with concurrency(
        LIMIT, occupy=num, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False
    ):
        yield
