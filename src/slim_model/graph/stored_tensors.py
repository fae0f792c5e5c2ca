"""Which stored tensors are one and the same: parameters and buffers that several names of a model share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor


def storage_key(tensor: Tensor) -> Hashable:
    """The identity of a stored tensor: two tensors have the same key where they are the same numbers in memory.

    It names the storage, and how offset, shape, strides and dtype read it: strides tell a square weight from its
    transpose. The storage is named by the object that owns it and not by its address, which is 0 on the meta device
    and for a tensor without elements, so that all of these would seem to be one. A key holds as long as its tensor
    lives; afterwards another storage may get the same name.

    >>> weight = torch.zeros(2, 2)
    >>> storage_key(weight) == storage_key(weight.detach()), storage_key(weight) == storage_key(weight.t())
    (True, False)
    """
    storage = tensor.untyped_storage()._cdata  # as torch.save tells storages apart
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that stand for a tensor which an earlier name has already, each with the first such name."""
    first: dict[Hashable, str] = {}
    firsts = {name: first.setdefault(storage_key(tensor), name) for name, tensor in tensors.items()}
    return {name: earlier for name, earlier in firsts.items() if earlier != name}
