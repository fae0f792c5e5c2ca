"""shrink: a dense graph and the channels to keep -> the small graph, and the small copy of the user's module.

The graph is the ground truth: every stored tensor is sliced and every size that was baked into the graph is
rewritten. The module is the user's own classes with sliced parameters; it is right where the forward computes its
sizes, and whoever hands it out checks that.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from slim_model.couple import Coupling
from slim_model.decisions import Decision
from slim_model.errors import SlimError
from slim_model.labels import Replay, bound, tensors_in
from slim_model.ops import Cut, Part, recurrent, row_of
from slim_model.trace import Graph, copy_graph


class CutFailed(SlimError):
    """One node of the graph cannot be made smaller: its channels must be pinned. Never seen by users."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node, self.reason = node, reason


def cut_of(coupling: Coupling, keep: np.ndarray) -> Cut:
    """``keep``: bool by channel (component number); channel 0 is fixed and stays."""
    return Cut(coupling.graph, coupling.walk.values, coupling.walk.choices, keep[coupling.component])


def left_of(coupling: Coupling, keep: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """(tensor, axis) -> the positions of the dense model that are left; axes that keep all are not listed."""
    kept, found = keep[coupling.component], {}
    for birth in coupling.walk.births:
        here = np.flatnonzero(kept[birth.start : birth.start + birth.size])
        if len(here) < birth.size and not birth.owner.startswith("@"):
            found[birth.owner, birth.axis] = here
    return found


def shrink(coupling: Coupling, keep: np.ndarray) -> tuple[Graph, Replay]:
    """The small graph, and the labels its stored tensors carry (for the walk that checks it)."""
    dense, cut = coupling.graph, cut_of(coupling, keep)
    graph, copies = copy_graph(dense.module.graph)
    for node, small in copies.items():
        if node.op == "call_function":
            _rewrite(cut, node, small, copies)
    firsts = {owner: coupling.walk.shared.get(owner, owner) for owner in dense.tensors}
    sliced = {first: _sliced(coupling, cut, first) for first in dict.fromkeys(firsts.values())}
    tensors = {owner: sliced[first] for owner, first in firsts.items()}
    for node, small in copies.items():
        if node.op == "placeholder" and node.name in dense.owners:
            _retype(small, tensors[dense.owners[node.name]])
    module = fx.GraphModule(dense.module, graph)
    born = coupling.born(cut.keep)
    for owner, tensor in cut.tensors.items():
        born.born[owner, 0] = torch.zeros(len(tensor), dtype=torch.int32)
    decisions = {n.name: _decided(cut, n) for n in copies if n.name in dense.decisions}
    return dataclasses.replace(dense, module=module, tensors=tensors, decisions=decisions), born


def _decided(cut: Cut, node: fx.Node) -> Decision:
    """What the dense graph decides at ``node``, for the channels that are left."""
    values = tensors_in([cut.values[node]])
    whole = cut.graph.decisions[node.name]
    return tuple(None if x is None else cut.gathered(x, v) for x, v in zip(whole, values, strict=True))


def _rewrite(cut: Cut, node: fx.Node, small: fx.Node, copies: dict[fx.Node, fx.Node]) -> None:
    row = row_of(node.target)
    if row is None or row.rewrite is None:
        return
    touched = tensors_in([cut.values[n] for n in node.all_input_nodes] + [cut.values[node]])
    if not any(cut.cuts(value) for value in touched):
        return
    try:
        changed = row.rewrite(cut, node)
    except (ValueError, TypeError, KeyError) as error:
        raise CutFailed(node.name, str(error)) from error
    if not changed:
        return
    target = changed.pop("target", None)
    arguments = changed if target else bound(node) | changed
    small.target = target or node.target
    required = {a.name for a in small.target._schema.arguments if not a.kwarg_only}  # type: ignore[union-attr]
    arguments = {name: _number(node, given, copies) for name, given in arguments.items()}
    arguments = fx.map_arg(arguments, lambda n: copies.get(n, n))
    small.args = tuple(v for k, v in arguments.items() if k in required)
    small.kwargs = {k: v for k, v in arguments.items() if k not in required}


def _number(node: fx.Node, given: Any, copies: dict[fx.Node, fx.Node]) -> Any:
    """A ``Part`` of a product is the product with a smaller factor; anything else is what it is."""
    if not isinstance(given, Part):
        return given
    number, factors = given.number, [n for n in given.number.args if isinstance(n, int)]
    if number.target is not operator.mul or len(factors) != 1 or factors[0] * given.left % given.whole:
        raise CutFailed(node.name, "how many groups it has follows from other sizes")
    factor = factors[0] * given.left // given.whole
    small = copies[number]
    small.args = tuple(factor if isinstance(n, int) else n for n in small.args)
    small.meta["val"] = number.meta["val"] * given.left // given.whole
    return number


def _sliced(coupling: Coupling, cut: Cut, owner: str) -> Tensor:
    tensor = cut.tensors.get(owner)
    if tensor is not None:
        return tensor
    tensor = coupling.graph.tensors[owner]
    for birth in coupling.births_of(owner):
        labels = np.arange(birth.start, birth.start + birth.size)
        kept = torch.from_numpy(np.flatnonzero(cut.keep[labels]))
        if len(kept) < birth.size:
            tensor = tensor.detach().index_select(birth.axis, kept.to(tensor.device))
    return tensor


def _retype(node: fx.Node, tensor: Tensor) -> None:
    """Give a placeholder the shape of the sliced tensor it now stands for."""
    old = node.meta.get("val")
    if not isinstance(old, Tensor) or tuple(old.shape) == tuple(tensor.shape):
        return
    mode = getattr(old, "fake_mode", None)
    if mode is None:
        node.meta["val"] = tensor
    else:
        with mode:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    node.meta.pop("tensor_meta", None)


def resized(graph: Graph) -> Graph:
    """``graph``, whose nodes now know their sizes as they follow from those of the placeholders; a symbolic batch stays
    symbolic."""
    given = {n: n.meta["val"] for n in graph.nodes if n.op == "placeholder"}
    mode: Any = torch._guards.detect_fake_mode(list(given.values())) if graph.program else FakeTensorMode()
    if graph.program is None:  # each of its nodes has a mode of its own
        given = {n: mode.from_tensor(x) if isinstance(x, Tensor) else x for n, x in graph.bind(graph.inputs).items()}
    with mode or contextlib.nullcontext(), torch.no_grad(), enable_python_dispatcher():  # else some sizes become fixed
        _Resizing(graph, mode).run(initial_env=given)
    return graph


class _Resizing(fx.Interpreter):
    """Runs a graph on sizes alone, and writes down what each node gives."""

    def __init__(self, graph: Graph, mode: Any) -> None:
        super().__init__(graph.module)
        self.decisions, self.mode = graph.decisions, mode

    def run_node(self, n: fx.Node) -> Any:
        decision = self.decisions.get(n.name, ())
        if len(decision) == 1:  # how many boxes are kept does not follow from sizes
            result = self.mode.from_tensor(decision[0])
        elif getattr(n.target, "overloadpacket", None) in recurrent.ROWS and "hx" in bound(n):
            result = recurrent.shapes(**fx.map_arg(bound(n), self.env.__getitem__))
        else:
            result = super().run_node(n)
        n.meta["val"] = result
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value) if self.mode and isinstance(value, Tensor) else value


# -- the module -----------------------------------------------------------------------------------------------------


def shrink_module(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A copy of ``model`` (its own classes) that holds ``tensors`` (by name; others are copied as they are)."""
    memo: dict[int, Any] = {}
    owned = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in owned.items():
        new = tensors.get(name, tensor).detach().clone()
        if isinstance(tensor, nn.Parameter):
            memo.setdefault(id(tensor), nn.Parameter(new, requires_grad=tensor.requires_grad))
        else:
            memo.setdefault(id(tensor), new)
    result = copy.deepcopy(model, memo)
    for module in result.modules():
        _update_attributes(module)
    return result


def _update_attributes(module: nn.Module) -> None:
    """Sizes that standard layers remember beside their weights."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        _update_recurrent(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    shape = weight.shape
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        if module.groups > 1 and shape[1] == module.out_channels // module.groups:  # whole groups went
            module.groups = module.groups * shape[0] // module.in_channels
        module.in_channels, module.out_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.groups = _groups_left(module, shape)
        module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups
        if module.num_groups > each and shape[0] % each == 0:  # then whole groups go
            module.num_groups = shape[0] // each
        module.num_channels = shape[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = shape


def _update_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    layer = "_l0" if isinstance(module, nn.RNNBase) else ""
    rows, module.input_size = getattr(module, f"weight_ih{layer}").shape
    gates = 4 if isinstance(module, nn.LSTM | nn.LSTMCell) else 3 if isinstance(module, nn.GRU | nn.GRUCell) else 1
    module.hidden_size = rows // gates
    if getattr(module, "proj_size", 0):
        module.proj_size = len(getattr(module, f"weight_hr{layer}"))


def _groups_left(conv: nn.modules.conv._ConvNd, shape: torch.Size) -> int:
    """Whole groups went where the number of outputs per group is unchanged."""
    per_group = conv.out_channels // conv.groups
    if conv.groups == 1 or shape[1] != conv.in_channels // conv.groups:
        return conv.groups
    return shape[0] // per_group if shape[0] % per_group == 0 else conv.groups


def graph_module(graph: Graph) -> nn.Module:
    """The graph as a module that holds its tensors as parameters and buffers under their own names."""
    root = nn.Module()
    body = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result: Any = body.graph_copy(graph.module.graph, copies)
    body.output(_structured(graph, result))
    parameters = graph.parameter_names
    for node in [n for n in body.nodes if n.op == "placeholder" and n.name in graph.owners]:
        owner = graph.owners[node.name]
        _store(root, owner, graph.tensors[owner], owner in parameters)
        node.op, node.target, node.args = "get_attr", owner, ()
    for node in body.nodes:
        if node.op == "get_attr" and node.target not in graph.owners.values():
            setattr(root, str(node.target), getattr(graph.module, str(node.target)))
    return fx.GraphModule(root, body)


def _structured(graph: Graph, outputs: Any) -> Any:
    """Outputs as the model returned them: a tensor, tuple, list or dict; other containers become a tuple."""
    spec = graph.program.call_spec.out_spec if graph.program is not None else None
    if spec is None:
        return outputs
    structure = pytree.tree_unflatten(list(outputs), spec)
    return structure if isinstance(structure, fx.Node | tuple | list | dict) else tuple(outputs)


def _store(root: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if is_parameter:
        setattr(root, leaf, nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point()))
    else:
        root.register_buffer(leaf, tensor.detach())
