"""A large batch in small parts: the memory of one part, the loss and gradient of the whole batch.

Plain accumulation, the mean of the parts' losses, is another objective: a contrastive term would
see the negatives of its part only, SSM the pairs of its part, and masked words would weigh more in
a report-poor part. But the terms read nothing but the model's outputs, and those are small. So each
part runs through the model without keeping its activations; the terms are computed once, on the
outputs of all parts (and ranks); and on the way back each part runs again, alone, and receives its
share of the gradient. That is GradCache (Gao et al. 2021, arXiv 2101.06983) for every term at once,
by activation checkpointing of the whole model: one more forward pass, exact to rounding, as long as
no layer mixes samples (no batch norm). Random draws in the second run are those of the first.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows = TypeVar("Rows")


def in_parts(model: Callable[[Rows], Any], inputs: Rows, num_parts: int) -> Any:
    """``model(inputs)``, computed in ``num_parts`` parts along axis 0.

    Inputs and outputs are dataclasses of tensors [B, ...], or None where that is the default. Parts
    share the batch's padding, so the outputs of all have equal shapes. Raises ValueError for more
    parts than samples.
    """
    if num_parts == 1:
        return model(inputs)

    def run(*columns: Tensor) -> Any:
        return model(type(inputs)(*columns))

    # As separate arguments: torch keeps the random state of the devices of those that are tensors.
    parts = [vars(part).values() for part in split(inputs, num_parts)]
    return join([checkpoint(run, *part, use_reentrant=False) for part in parts])


def split(rows: Rows, num_parts: int) -> list[Rows]:
    """Parts of nearly equal size, in order; what is None stays None."""
    columns = {field.name: getattr(rows, field.name) for field in fields(rows)}  # type: ignore[arg-type]
    columns = {name: tensor for name, tensor in columns.items() if tensor is not None}
    size = len(next(iter(columns.values())))
    if num_parts > size:
        raise ValueError(
            f"pretrain.accumulate_steps {num_parts} exceeds the {size} samples of a rank: lower it"
        )
    cut = {name: tensor.tensor_split(num_parts) for name, tensor in columns.items()}
    return [
        type(rows)(**{name: parts[index] for name, parts in cut.items()})
        for index in range(num_parts)
    ]


def join(parts: list[Rows]) -> Rows:
    """The inverse of :func:`split`; what is None stays None."""
    columns: dict[str, Tensor | None] = {}
    for field in fields(parts[0]):  # type: ignore[arg-type]
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if values[0] is None else torch.cat(values)
    return type(parts[0])(**columns)
