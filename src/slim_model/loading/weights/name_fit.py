"""Names in a file -> names in a model: what training put in front of them or between them is taken off again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slim_model.errors import InputError

#: What wrappers put into the names: torch.compile, FSDP, activation checkpointing, Lightning Fabric.
_INFIXES = (
    *("_orig_mod.", "_fsdp_wrapped_module.", "_fpw_module.", "_checkpoint_wrapped_module.", "_forward_module."),
    "_original_module.",
)
#: Counts and measurements that tools leave among the weights: thop, averaging, mmengine.
_COUNTS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged|steps|num_updates)$|(^|\.)_extra_state$")
#: Of two parts that fit alike, the one that the project runs; what is averaged, but not the momentum encoder of
#: contrastive learning, which is thrown away.
_RUN = re.compile(r"ema|teacher|averag|swa|encoder_q|online|base_encoder", re.IGNORECASE)
_THROWN_AWAY = re.compile(r"encoder_k|momentum|target|queue", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fitted:
    """``tensors`` under the names of the model, as far as they can be told; ``prefix`` was taken off them. ``others``:
    names in the file that do not begin with it. ``rivals``: prefixes under which as many names are the model's;
    ``open``: nothing says which of them is meant. ``folded``: how many masks were multiplied in."""

    tensors: dict[str, Tensor]
    prefix: str = ""
    others: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    open: bool = False
    folded: int = 0

    def matches(self, expected: Mapping[str, torch.Size]) -> int:
        return len(self.tensors.keys() & expected.keys())

    def fits(self, expected: Mapping[str, torch.Size]) -> bool:
        """Every name of the model is there, in its shape."""
        return all(name in self.tensors and self.tensors[name].shape == shape for name, shape in expected.items())


def fit_names(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], prefix: str | None = None) -> Fitted:
    """``state`` as a model with names and shapes ``expected`` has it. ``prefix``: what the user says to take off;
    otherwise the one under which most names are the model's: ``{"net.a": x}, {"a"} -> {"a": x}``."""
    plain = _without_infixes(state, expected)
    plain, folded = _masked(plain, expected)
    plain = {name: x for name, x in plain.items() if name in expected or not _COUNTS.search(name)}
    best, *rivals = [_given(plain, prefix)] if prefix is not None else _prefixes(plain, expected)
    taken = {name.removeprefix(best): x for name, x in plain.items() if name.startswith(best)}
    others = tuple(name for name in plain if not name.startswith(best))
    averages = {f"ema_{name.replace('.', '_')}" for name in taken}  # mmcv keeps them among the weights
    taken = {name: x for name, x in taken.items() if name in expected or name not in averages}
    undecided = bool(rivals) and _worth(best) == _worth(rivals[0])
    return Fitted(taken, best, others, tuple(rivals), undecided, folded)


def _given(state: Mapping[str, Tensor], prefix: str) -> str:
    """As the user typed it, with the dot that may be left out."""
    dotted = prefix if prefix.endswith(".") else f"{prefix}."
    for written in (dotted, prefix):
        if any(name.startswith(written) for name in state):
            return written
    tops = dict.fromkeys(name.partition(".")[0] for name in state)
    raise InputError(f"--prefix {prefix}: no name begins so. They begin with {', '.join([*tops][:8])}.")


def _without_infixes(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    infixes = [infix for infix in _INFIXES if not any(infix in name for name in expected)]
    named = dict(state)
    for infix in infixes:
        named = {name.replace(infix, ""): x for name, x in named.items()}
    if not any(".module." in name for name in expected):  # DataParallel of a part
        shorter = {re.sub(r"(?<=\.)module\.", "", name): x for name, x in named.items()}
        if len(shorter.keys() & expected.keys()) > len(named.keys() & expected.keys()):
            return shorter
    return named


def _masked(state: dict[str, Tensor], expected: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], int]:
    """What ``torch.nn.utils.prune`` leaves, ``weight_orig`` and ``weight_mask``, as the weight that was used."""
    merged, folded = dict(state), 0
    for name in state:
        base = name.removesuffix("_orig")
        mask = f"{base}_mask"
        if base == name or mask not in state or name in expected or state[mask].shape != state[name].shape:
            continue
        merged[base] = merged.pop(name) * merged.pop(mask).to(state[name].dtype)
        folded += 1
    return merged, folded


def _prefixes(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    """Those under which most names are the model's, in its shapes; the one to take first. ``[""]`` where none is better
    than no prefix, or has half of the names of the model."""
    votes, shaped = Counter({"": 0}), Counter({"": 0})
    for name, tensor in state.items():
        at = 0
        while True:
            if (rest := name[at:]) in expected:
                votes[name[:at]] += 1
                shaped[name[:at]] += expected[rest] == tensor.shape
            if (at := name.find(".", at) + 1) == 0:
                break
    most = max((shaped[p], votes[p]) for p in votes)
    if (shaped[""], votes[""]) == most or 2 * most[1] < len(expected):
        return [""]
    best = [prefix for prefix in votes if (shaped[prefix], votes[prefix]) == most]
    return sorted(best, key=lambda p: (_worth(p), len(p)))


def _worth(prefix: str) -> tuple[bool, bool]:
    return bool(_THROWN_AWAY.search(prefix)), not _RUN.search(prefix)
