"""Several processes as one. ``torchrun`` starts them; the first alone speaks, measures and writes.

Each does all that is cheap, alike; what the data costs is shared out. Without ``torchrun``, or with one process, every
function here is the identity. PyTorch is imported only where there are several: the command line asks who may speak
before it has any need of PyTorch.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = datetime.timedelta(hours=2)
"""One process may rank channels for long while the others wait."""


@contextlib.contextmanager
def join_processes() -> Iterator[None]:
    """The processes that ``torchrun`` started are one group inside; where a group is there already, that one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ or _several():
        yield
        return
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and torch.cuda.device_count() > int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _several() -> bool:
    """Whether this process is one of a group."""
    return "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()


def rank() -> int:
    return _dist().get_rank() if _several() else 0


def world_size() -> int:
    return _dist().get_world_size() if _several() else 1


def _dist() -> Any:
    return sys.modules["torch.distributed"]


def device(kind: str) -> torch.device:
    """Each process of a machine has a GPU of its own."""
    import torch

    if kind == "cuda" and world_size() > 1:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(kind)


def merge_ranks(mine: T | None, merge: Callable[[T, T], T]) -> T | None:
    """The parts of all merged, in the order of their ranks; the same for all."""
    if world_size() == 1:
        return mine
    parts: list[Any] = [None] * world_size()
    _dist().all_gather_object(parts, mine)
    result: Any = None
    for part in parts:
        if part is not None:
            result = part if result is None else merge(result, part)
    return result  # type: ignore[no-any-return]


def share_from_first(make: Callable[[], T]) -> T:
    """What the first process makes, for all of them."""
    if world_size() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    _dist().broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[no-any-return]


def copy_from_first(tensors: Mapping[str, Tensor]) -> None:
    """Give ``tensors`` the values they have in the first process."""
    if world_size() > 1:
        for name in sorted(tensors):
            _dist().broadcast(tensors[name].data, src=0)


def mean_over_ranks(value: float) -> float:
    """Over all processes."""
    if world_size() == 1:
        return value
    import torch

    total = torch.tensor(value, dtype=torch.float64)
    _dist().all_reduce(total)
    return float(total) / world_size()


def may_speak() -> bool:
    """Whether this process is the first to end with an error: one message is enough."""
    if world_size() == 1:
        return True
    try:
        store: Any = _dist().distributed_c10d._get_default_store()
        return bool(store.add("slim-model-failed", 1) == 1)
    except (RuntimeError, _dist().DistError):
        return rank() == 0
