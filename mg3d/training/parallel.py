"""How a model lies on the ranks: whole on each (DDP), or in shards put together when used (FSDP2).

Both average gradients over the ranks, so they train the same weights up to rounding. A sharded
model has DTensors for parameters; what is kept on disk is always whole: :func:`whole` and
:func:`laid_out_as` are the two ways between them.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mg3d.training.distributed import world_size


def replicated(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` in DDP, whose first rank's weights all start from; alone, ``module`` itself."""
    if world_size() == 1:
        return module
    return DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # they are constants
    )


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Spread the parameters of ``model`` over the ranks, in place; alone, leave it as it is.

    Every rank must hold the same weights. Each of ``blocks``, modules inside ``model``, is put
    together for its own forward and backward pass only; the other parameters stay together from
    the start of the model's forward pass to the end of its backward pass. Names and (global) shapes
    of the parameters stay. Nothing is cast: the loop's autocast decides what runs in bfloat16, as
    under DDP; a MixedPrecisionPolicy would also round norms, and what the losses compare.

    From then on a forward pass is a collective, save under :func:`for_evaluation`.
    """
    if world_size() == 1:
        return
    # Swin's levels return views; nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


@contextmanager
def for_evaluation(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode with all parameters whole on every rank. To be entered by all ranks.

    No forward pass in it is a collective, so the ranks may run the model, or a part of it,
    unequally often. Nothing is compiled: batches come in several sizes here.
    """
    model.eval()
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    with torch.compiler.set_stance("force_eager"):
        yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(part is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """The tensor that the ranks hold shards of. A collective, if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_as(example: Tensor, tensor: Tensor) -> Tensor:
    """This rank's shard of ``tensor``, which every rank has whole, if ``example`` is sharded."""
    if not isinstance(example, DTensor):
        return tensor
    mesh, placements = example.device_mesh, example.placements
    return distribute_tensor(tensor.to(example.device), mesh, placements, src_data_rank=None)


def clip_gradients(module: nn.Module, clip_norm: float) -> float:
    """Scale the gradients to a global norm of at most ``clip_norm``; returns the norm before."""
    return float(whole(nn.utils.clip_grad_norm_(module.parameters(), clip_norm)))
