"""Which samples a step sees, and its random numbers: pure functions of the seed and the step.

Nothing here knows the number of ranks: rank r takes its slice of the global batch, so one process
and eight see the same batches with the same masks, and a resume needs only the step.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator

import torch


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator that depends on nothing but ``seed`` and ``keys`` (purpose, step, ...)."""
    key = "/".join(map(str, (seed, *keys)))
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def epoch_order(seed: int, epoch: int, num_samples: int) -> list[int]:
    """The permutation of ``range(num_samples)`` that epoch ``epoch`` goes through."""
    permutation: list[int] = torch.randperm(
        num_samples, generator=generator(seed, "order", epoch)
    ).tolist()
    return permutation


def nested_subset(seed: int, study_ids: Iterable[str], fraction: float) -> frozenset[str]:
    """``fraction`` of the studies, at least one, chosen by a hash of seed and id.

    Of one seed, a smaller fraction's studies are among those of a larger one.
    """

    def place(study_id: str) -> str:
        return hashlib.sha256(f"{seed}/subset/{study_id}".encode()).hexdigest()

    ordered = sorted(study_ids, key=place)
    return frozenset(ordered[: max(1, round(fraction * len(ordered)))])


def global_batches(
    seed: int, num_samples: int, batch_size: int, start_step: int = 0
) -> Iterator[list[int]]:
    """Endless batches of ``batch_size`` distinct sample indices, beginning after ``start_step``.

    Every epoch uses every sample exactly once. What an epoch leaves over, less than a batch, is
    completed by the next epoch's first samples that it does not contain already (a sample met twice
    in one batch would be its own negative). Raises ValueError if a batch exceeds the samples.
    """
    if batch_size > num_samples:
        raise ValueError(
            f"batch_size {batch_size} exceeds the {num_samples} training samples: "
            f"lower it to at most {num_samples}"
        )
    return itertools.islice(_endless(seed, num_samples, batch_size), start_step, None)


def _endless(seed: int, num_samples: int, batch_size: int) -> Iterator[list[int]]:
    left_over: list[int] = []
    for epoch in itertools.count():
        order = epoch_order(seed, epoch, num_samples)
        if left_over:
            seen = set(left_over)
            fresh = (index for index in order if index not in seen)
            first = list(itertools.islice(fresh, batch_size - len(left_over)))
            taken = set(first)
            order = left_over + first + [index for index in order if index not in taken]
        num_full = len(order) // batch_size * batch_size
        for start in range(0, num_full, batch_size):
            yield order[start : start + batch_size]
        left_over = order[num_full:]


def random_state(device: torch.device) -> torch.Tensor:
    """State of this rank's global generators, CPU then CUDA: uint8 [bytes] on ``device``."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states).to(device)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Undo everything drawn since :func:`random_state`."""
    num_cpu_bytes = len(torch.get_rng_state())
    # copies: torch reads a state from the start of its storage, and so refuses a row of many
    torch.set_rng_state(state[:num_cpu_bytes].cpu().clone())
    if device.type == "cuda" and len(state) > num_cpu_bytes:
        torch.cuda.set_rng_state(state[num_cpu_bytes:].cpu().clone(), device)
