"""Of all weights in a file, those that fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from slim_model.errors import InputError
from slim_model.loading.weights.checkpoint import Checkpoint, Weights
from slim_model.loading.weights.name_fit import Fitted, fit_names

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ChosenWeights:
    """``weights``, with their names made to fit. ``rivals``: other weights that fit as well, of other values."""

    weights: Weights
    fitted: Fitted
    rivals: tuple[Weights, ...]
    complete: bool  # every name of the model is there, in its shape
    several: bool

    @property
    def words(self) -> str:
        return f"weights at {self.weights.path!r}" if self.weights.path else "weights at its top"

    def check_clear(self) -> None:
        """InputError where nothing says which of several is meant."""
        if not self.complete:
            return
        if self.rivals and not self.weights.known:
            places = ", ".join(repr(w.path) for w in (self.weights, *self.rivals))
            raise InputError(f"holds several weights that fit, at {places}. Say which: --key {self.weights.path}.")
        if self.fitted.open:
            prefixes = ", ".join(repr(p) for p in (self.fitted.prefix, *self.fitted.rivals))
            raise InputError(
                f"holds several weights that fit, below {prefixes}. Say which: --prefix {self.fitted.prefix}"
            )

    def notes(self) -> tuple[str, ...]:
        """What was assumed, for the user."""
        fit, said = self.fitted, []
        if self.rivals:
            others = " and ".join(repr(w.path) for w in self.rivals[:_SHOWN])
            said.append(f"the {self.words} were taken; those at {others} fit, too: --key {self.rivals[0].path}")
        elif self.several:
            said.append(f"the {self.words} were taken")
        if fit.prefix:
            outside = f"; {len(fit.others)} tensors without it were left out" if fit.others else ""
            said.append(f"the names in the file begin with {fit.prefix!r}, which was taken off{outside}")
        if fit.rivals and self.complete:
            others = " and ".join(repr(p) for p in fit.rivals[:_SHOWN])
            said.append(f"the weights below {others} fit, too: --prefix {fit.rivals[0]}")
        if fit.folded:
            said.append(f"{fit.folded} masks of torch.nn.utils.prune were multiplied into their weights")
        return tuple(said)


def choose_weights(saved: Checkpoint, expected: Mapping[str, torch.Size], prefix: str | None = None) -> ChosenWeights:
    """The weights with most names, then most shapes, of a model whose names and shapes are ``expected``; of equal ones
    those that checkpoints keep to be run. With a ``prefix`` that no name has, the InputError names those there are."""
    tries: list[tuple[tuple[int, int], Weights, Fitted]] = []
    refused: InputError | None = None
    for weights in saved.weights:
        try:
            fit = fit_names(weights.tensors, expected, prefix)
        except InputError as error:
            refused = refused or error
        else:
            tries.append((_score(fit, expected), weights, fit))
    if not tries:
        raise refused or InputError(f"holds no weights but {saved.summary}.")
    best, weights, fit = max(tries, key=lambda t: t[0])
    complete = fit.fits(expected)
    equal = [(w, f) for score, w, f in tries if score == best and w is not weights] if complete else []
    rivals = tuple(w for w, f in equal if _differ(f, fit, expected))
    return ChosenWeights(weights, fit, rivals, complete, len(saved.weights) > 1 and bool(weights.path))


def _score(fit: Fitted, expected: Mapping[str, torch.Size]) -> tuple[int, int]:
    common = fit.tensors.keys() & expected.keys()
    return len(common), sum(fit.tensors[name].shape == expected[name] for name in common)


def _differ(one: Fitted, other: Fitted, expected: Mapping[str, torch.Size]) -> bool:
    return any(not torch.equal(one.tensors[name], other.tensors[name]) for name in expected)
