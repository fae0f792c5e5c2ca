"""The small model as a module, of the user's own classes where these compute what the small graph does.

A forward that works out its sizes from other sizes may run on a smaller layer and compute something else: 24 channels
that were 4 heads of 6 are cut by a remembered width of 12 into 2 heads. Where attention hardly matters, the outputs do
not show it. So every layer of the module must give what it gives in the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from slim_model.calling.outputs import flatten_outputs, output_tensors
from slim_model.cutting.remembered_sizes import Sizes, remembered_sizes, set_sizes
from slim_model.cutting.shrink_module import shrink_module
from slim_model.errors import ProofError
from slim_model.from_onnx.model import OnnxModel
from slim_model.graph.as_module import graph_module
from slim_model.graph.autocast import in_float32
from slim_model.graph.decisions import DecisionRecorder, DecisionReplayer
from slim_model.graph.graph import Factored, Graph, first_sample
from slim_model.graph.modes import eval_mode
from slim_model.graph.nodes import arguments_of
from slim_model.graph.other_inputs.other_sizes import resized
from slim_model.graph.tensor_trees import batch_of
from slim_model.ops import row_of
from slim_model.proof.tolerance import TOLERANCE, relative_error

_SAMPLED = 4096  # values of a layer's output that are compared


class SmallModule(NamedTuple):
    """The small model as a module. ``own``: it is of the user's own classes; else it is the traced graph. ``sizes``:
    what attributes of its modules became."""

    module: nn.Module
    own: bool
    sizes: Sizes = {}  # noqa: RUF012  # of a tuple: nobody writes to it


def make_small_module(
    model: nn.Module, small: Graph, dense: Graph | None = None, *, every_method: bool = False
) -> SmallModule:
    """The user's ``model`` made small, where it computes what the graph ``small`` does; else that graph as a module.

    ``dense``: what the model was traced as; with it, attributes that hold sizes are tried at those of ``small``, where
    forward does not run without, or for ``every_method`` of its classes to find the sizes that there are.
    Raises ProofError where the model decides from its values and its own class does not compute what was proven.
    """
    module = _shrunk(model, small)
    with in_float32():  # as it was traced
        if small.decisions:
            return SmallModule(_deciding(model, module, small), True)
        runs = module is not None and _computes(module, small)
        if module is not None and dense is not None and (every_method or not runs):
            for sizes in remembered_sizes(model, dense, small):
                set_sizes(module, sizes)
                if _computes(module, small):
                    return SmallModule(module, True, sizes)
            module = _shrunk(model, small)
        if module is not None and runs:
            return SmallModule(module, True)
    return SmallModule(graph_module(small), False)


def _deciding(model: nn.Module, module: nn.Module | None, small: Graph) -> nn.Module:
    """``module``, where it computes what ``small`` does with the decisions that ``model`` takes on the example given to
    it, and also runs when it decides for itself. With the graph there is nothing to hand out in its place: it has the
    sizes in it that follow from these decisions."""
    with eval_mode(model), _unfused(model), DecisionRecorder() as noted:
        small.call(model, small.inputs)
    replay = DecisionReplayer(noted)
    if module is None or not _agrees(module, small, small.inputs, replay) or not _runs(model, module, small):
        raise ProofError(
            "the model makes decisions from its values, and its own class with smaller layers does not compute what "
            "was proven. Nothing was written. --keep GLOB leaves layers out."
        )
    return module


def _runs(model: nn.Module, module: nn.Module, small: Graph) -> bool:
    """Whether ``module`` gives an output such as that of ``model``, and finite where that is."""
    try:
        with eval_mode(model):
            theirs, mine = (flatten_outputs(small.call(m, small.inputs)) for m in (model, module))
    except Exception:  # the user's forward may fail in any way on other decisions
        return False
    return theirs[1] == mine[1] and (not _finite(theirs[0]) or _finite(mine[0]))


def _finite(outputs: tuple[Tensor, ...]) -> bool:
    return all(bool(x.isfinite().all()) for x in outputs)


def _shrunk(model: nn.Module, small: Graph) -> nn.Module | None:
    if isinstance(model, torch.jit.ScriptModule | OnnxModel):
        return None  # it has no class of the user's; a script is copied in C++, which takes no smaller tensors
    try:
        return shrink_module(model, small.tensors, small.folded, _factored_in(small)).eval()
    except Exception:  # a class of the user's may refuse to be copied: the graph is the ground truth
        return None


def _factored_in(small: Graph) -> list[Factored]:
    """The factored layers with the groups that their factors have in ``small``."""
    nodes = {node.name: node for node in small.nodes}
    return [layer.with_groups(lambda factor: arguments_of(nodes[factor.node])["groups"]) for layer in small.factored]


def _computes(module: nn.Module, small: Graph) -> bool:
    """Whether ``module`` does what ``small`` does on a batch of one: there no ``view(-1, ...)`` can take from the batch
    what is missing of its channels. A model may treat a batch of one in a way of its own: then on two larger ones.
    Where other axes are free, also at other sizes."""
    if _agrees(module, small, first_sample(small)):
        return not small.free.others or _agrees(module, small, resized(small, small.free.elsewhere(batch=1)))
    more = small.free.elsewhere(batch=batch_of(small.inputs) + 1)
    return small.dynamic_batch and all(_agrees(module, small, x) for x in (small.inputs, resized(small, more)))


def _agrees(
    module: nn.Module, small: Graph, inputs: tuple[Any, ...], steered: AbstractContextManager[Any] | None = None
) -> bool:
    """Both give the same outputs, and the layers on the way the same values."""
    plain = small.with_tensors({name: tensor.detach() for name, tensor in small.tensors.items()})
    with _unfused(module), torch.no_grad():
        with _LayerRecorder() as theirs:
            expected = plain.run(inputs)
        try:
            with _LayerRecorder() as mine, steered or nullcontext():
                outputs = output_tensors(small.call(module, inputs))
        except Exception:  # the user's forward may fail in any way on other sizes
            return False
    return (
        len(outputs) == len(expected)
        and all(map(_close, expected, outputs))
        and _in_order(iter(mine.layers), theirs.layers)
    )


@contextlib.contextmanager
def _unfused(module: nn.Module) -> Iterator[None]:
    """One operator for a whole layer, and others for a linear one whose weight is trained, could not be compared."""
    fused = torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for parameter in trained:
            parameter.requires_grad = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter in trained:
            parameter.requires_grad = True


class _LayerOutput(NamedTuple):
    target: Any
    shape: tuple[int, ...]
    values: Tensor


def _in_order(mine: Iterator[_LayerOutput], expected: list[_LayerOutput]) -> bool:
    """The module may compute more: numbers that are stored in the graph."""
    return all(
        any(m.target is e.target and m.shape == e.shape and _close(e.values, m.values) for m in mine) for e in expected
    )


def _close(expected: Tensor, other: Tensor) -> bool:
    return relative_error(expected, other) <= TOLERANCE


class _LayerRecorder(TorchDispatchMode):
    """Keeps some values of whatever a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[_LayerOutput] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        row = row_of(func)
        if row.macs or row.masks != "nothing" if row else "attention" in func.__name__:
            first = pytree.tree_leaves(result)[0]
            step = max(1, first.numel() // _SAMPLED)
            self.layers.append(_LayerOutput(func, tuple(first.shape), first.detach().reshape(-1)[::step].clone()))
        return result
