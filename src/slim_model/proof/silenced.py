"""Groups that nothing reads any more, proven like any other removal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from slim_model.coupling.coupling import Coupling
from slim_model.cutting.cut import cut_of
from slim_model.cutting.masked import Masked
from slim_model.cutting.silence import silence
from slim_model.errors import ProofError
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import tensors_among
from slim_model.proof.tolerance import TOLERANCE, relative_error


def prove_silenced(
    coupling: Coupling, small: Graph, keep: np.ndarray, groups: Sequence[int], batches: list[tuple[Any, ...]]
) -> Graph:
    """``small``, which was proven for ``keep``, with ``groups`` read no more. Raises ProofError where it does not
    equal the dense graph in which every channel of theirs is zero where it is read, too."""
    if not groups:
        return small
    left = keep.copy()
    for number in groups:
        left[coupling.groups[number].channels] = False
    silent, cut = silence(small, coupling, groups), cut_of(coupling, left)
    for inputs in batches:
        masked = Masked(coupling.graph, cut)
        with torch.no_grad():
            expected = tensors_among(masked.run(initial_env=coupling.graph.bind(inputs)))
        for a, b in zip(expected, silent.run(inputs), strict=True):
            if not relative_error(a, b) <= TOLERANCE:
                names = ", ".join(coupling.groups[number].name for number in groups)
                raise ProofError(
                    f"the model without {names} could not be proven: its outputs differ by {relative_error(a, b):.1e}. "
                    "Nothing was written. This is a fault of slim-model: please report the model; --allocate uniform "
                    "leaves a part of every layer."
                )
    return silent
