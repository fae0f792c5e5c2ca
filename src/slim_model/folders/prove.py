"""The folder that was written = the dense model whose layers read only what is kept, both loaded by transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_model.errors import ProofError
from slim_model.folders.masked import masked_dense
from slim_model.folders.running import in_float32, inputs_of, load_folder, outputs_of
from slim_model.folders.write import Kept
from slim_model.proof.tolerance import TOLERANCE, relative_error


@dataclass(frozen=True, slots=True)
class FolderProof:
    """``error``: the largest difference of an output, relative to the largest output."""

    error: float
    samples: int
    compared: str


def prove_folder(
    kept: Kept, place: Path, seed: int = 0, measure: Callable[[Any], None] = lambda model: None
) -> FolderProof:
    """Compare the model loaded from ``place`` with the masked dense one on random inputs, in float32; one after the
    other, so that the memory need not hold both. ``measure`` gets the small one. Raises ProofError where they differ,
    or where transformers misses a tensor that it found in the dense folder."""
    checkpoint = kept.plan.checkpoint
    small = load_folder(place, checkpoint.dtype)
    x = inputs_of(small.model, seed)
    with in_float32(small.model):
        found = outputs_of(small.model, x)
        measure(small.model)
    name, unsaid = type(small.model).__name__, small.unsaid
    del small
    dense = masked_dense(kept)
    if lost := unsaid - dense.unsaid:
        raise ProofError(
            f"transformers misses or does not know {', '.join(sorted(lost)[:3])} in the folder that was written. "
            "Nothing was kept of it. Please report the model_type and the version of transformers."
        )
    with in_float32(dense.model):
        error = abs(relative_error(outputs_of(dense.model, x), found))
    if not error <= TOLERANCE:
        raise ProofError(
            f"the folder that was written differs from the masked dense model by {error:.1e} of the largest output; at "
            f"most {TOLERANCE:g} is allowed. Nothing was kept of it. Please report the model_type and the version of "
            "transformers."
        )
    return FolderProof(error, len(x[next(iter(x))]), name)
