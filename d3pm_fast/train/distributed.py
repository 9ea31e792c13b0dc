"""The processes that ``torchrun`` starts for one run; with one process nothing here does anything.

All processes know the whole batch and what is drawn for it, and each learns from its part. Whatever
is not the network's goes by gloo, also where the network's sums go by NCCL: gloo fails at once when
a process has died, while NCCL waits.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._collectives import SumGradient
from ..records import Sharding
from .device import pick_device

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # of those that wait for the first process, which draws samples


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes of ``torchrun``, if there are any and they are not joined yet.

    Raises:
        ValueError: one of them has died, or does not answer; or as :func:`pick_device`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    is_new = not dist.is_initialized()
    try:
        if is_new:
            init(pick_device(device_of(device, int(os.environ["LOCAL_RANK"]))))
        yield
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, dist.DistError):
            raise
        raise ValueError(
            f"process {os.environ['RANK']} ends, as another one of the run has died or does not "
            "answer; the same command goes on from the last checkpoint"
        ) from error
    if is_new:
        dist.destroy_process_group()


def init(device: torch.device) -> None:
    """Make the process group of processes that compute on such a device."""
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    # It waits for the others without hearing signals, which torchrun sends when one of them is dead
    # already. So this thread is left to hear them.
    joining: Future[None] = Future()

    def join() -> None:
        try:
            joining.set_result(dist.init_process_group(backend, timeout=PATIENCE))
        except Exception as error:
            joining.set_exception(error)

    Thread(target=join, daemon=True).start()
    joining.result()


def device_of(name: str, local_rank: int) -> str:
    """Return the device that a name means for one of several processes on a machine."""
    has_gpus = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{local_rank}" if has_gpus else name


def pick_own_device(name: str) -> torch.device:
    """Return the device of this process, as :func:`pick_device` has it."""
    return pick_device(name if world() == 1 else device_of(name, int(os.environ["LOCAL_RANK"])))


def world() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return rank() == 0


def say(*words: object) -> None:
    """Print words, in the first process."""
    if is_first():
        print(*words, flush=True)


def total(numbers: Tensor) -> Tensor:
    """Return the sum of all processes' numbers, which are on the CPU; in place."""
    if world() > 1:
        dist.all_reduce(numbers)
    return numbers


def agreed(number: int) -> int:
    """Return the largest of all processes' numbers."""
    if world() == 1:
        return number
    largest = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def wait() -> None:
    """Wait for all processes."""
    agreed(0)


def first_alone(call: Callable[[], T]) -> T:
    """Return ``call()``, which the others begin once it is done in the first process."""
    if not is_first():
        wait()
    result = call()
    if is_first():
        wait()
    return result


def parts(pieces: int, shares: bool) -> list[slice]:
    """Return the rows of each of the pieces in which this process takes its part of a batch.

    Rows are dealt out in turn, so that each process has early and late times. Some have one row
    more than others; a small batch leaves a process none. Where processes do not share it, each
    takes all of it.
    """
    number, first = (world(), rank()) if shares else (1, 0)
    return [slice(first + number * piece, None, number * pieces) for piece in range(pieces)]


def replicated(network: nn.Module) -> nn.Module:
    """Return a network whose gradient is the mean of all processes', as a sharded one's is."""
    if world() == 1 or is_sharded(network):
        return network
    return DistributedDataParallel(network)


def shard(network: nn.Module) -> None:
    """Leave each process a part of each weight (FSDP2).

    A block's weights are put together while it computes.

    Raises:
        ValueError: PyTorch is too old.
    """
    if world() == 1:
        return
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ValueError("--fsdp needs PyTorch 2.6 or later") from error
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for modules in network.modules():
        if isinstance(modules, nn.ModuleList):
            for block in modules:
                if not isinstance(block, nn.ModuleList):
                    fully_shard(block)
    fully_shard(network)


def share_head(network: Any) -> None:
    """Leave each process the classes of its part of the last layer (tensor parallel).

    Raises:
        ValueError: PyTorch is too old.
    """
    if world() == 1:
        return
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor
    except ImportError as error:
        raise ValueError("--tensor-parallel needs PyTorch 2.5 or later") from error
    head = network.head
    num_classes = len(head.weight)
    mesh = init_device_mesh(head.weight.device.type, (world(),))
    for name, weight in [*head.named_parameters()]:
        part = distribute_tensor(weight.detach().contiguous(), mesh, [Shard(0)])
        head.register_parameter(name, nn.Parameter(part))
    group, axis = mesh.get_group(), 1 if isinstance(head, nn.Conv2d) else -1

    def forward(h: Tensor) -> Tensor:
        h = SumGradient.apply(h.movedim(axis, -1), group)  # type: ignore[no-untyped-call]
        weight, bias = (part.to_local() for part in head.parameters())
        return F.linear(h, weight.flatten(1), bias).movedim(-1, axis)

    head.forward = forward
    network.sharding = Sharding(group, -(-num_classes // world()), num_classes)


def is_sharded(network: nn.Module) -> bool:
    """Return whether each process has a part of each weight."""
    return world() > 1 and any(is_part(weight) for weight in network.parameters())


def is_part(tensor: Any) -> TypeGuard["DTensor"]:
    """Return whether a tensor is a part of one that all processes have."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together from all processes' parts, if it is in parts."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def placed_like(values: Any, others: Any) -> Any:
    """Return whole tensors, in dictionaries, in parts where others in the same places are."""
    if isinstance(values, dict):
        return {name: placed_like(value, others[name]) for name, value in values.items()}
    if not is_part(others):
        return values
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(values, others.device_mesh, others.placements)


def alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return whole tensors and parts apart: operations on lists take no mixed ones."""
    tensors = list(tensors)
    both = ([x for x in tensors if is_part(x) is kind] for kind in (False, True))
    return [some for some in both if some]


def clip_gradient(network: nn.Module, most: float) -> Tensor:
    """Shrink the gradient to a norm, and return the one that it had."""
    weights = [weight for weight in network.parameters() if weight.grad is not None]
    if len(alike(weights)) < 2:
        norm: Tensor = whole(torch.nn.utils.clip_grad_norm_(weights, most))
        return norm
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = torch.stack([whole(torch.linalg.vector_norm(grad)) for grad in gradients]).norm()
    factor = most / (norm.item() + 1e-6)
    if factor < 1:
        for gradient in gradients:
            gradient.mul_(factor)
    return norm


def gathering(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of a pass through the network; gradients are exchanged in the last one."""
    if hasattr(network, "set_requires_gradient_sync"):  # FSDP
        network.set_requires_gradient_sync(is_last)  # type: ignore[operator]
    elif isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return nullcontext()
