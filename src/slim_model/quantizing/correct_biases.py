"""Bias correction: what int8 adds to the mean of a layer's outputs is taken from its bias."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from slim_model.quantizing.calibrate import Feed
from slim_model.quantizing.stored_weights import WITH_BIAS, StoredGraph, layers_with_bias

Corrections = dict[str, np.ndarray]
"""By layer, for each output channel: what is added to its bias."""
_REDUCES_BY_INPUT = 18
"""Since this opset the axes of ReduceMean are an input, not an attribute."""


def corrections(fp32: Path, int8: Path, feeds: Iterable[Feed]) -> Corrections:
    """For each layer of ``fp32`` that takes a bias and that ``int8``, made of it, computes in int8.

    With W, x in fp32 and W', x' as int8 has them, E[W x] - E[W' x'] over samples and places is added (Nagel et al.,
    ICCV 2019, formula 17, and the error of the activation with it). Layers are linear: W of the mean input is the mean
    output, so that one run of ``fp32`` gives the means of every input, x and x', and no activation is kept. Each layer
    is corrected for its own error alone; those before it correct theirs.
    """
    model, quantised = onnx.load(fp32), StoredGraph.of(onnx.load(int8))
    stored = StoredGraph.of(model)
    layers = [node for node in layers_with_bias(stored) if _dequantised(quantised, node)]
    means = _mean_inputs(model, quantised, layers, feeds)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    found = {}
    for node in layers:
        own, rounded = means[node.input[0]]
        weight = stored.array(node.input[1])
        error = _run(node, own, weight, opset) - _run(node, rounded, _weight_in_int8(quantised, node), opset)
        found[node.name] = error.mean(axis=(0, *range(2, error.ndim)), dtype=np.float64)
    return found


def correct_biases(model: Path, added: Corrections, place: Path) -> None:
    """Write ``model`` to ``place`` with ``added`` in the biases of its layers."""
    loaded = onnx.load(model)
    stored = StoredGraph.of(loaded)
    for node in layers_with_bias(stored):
        if node.name not in added:
            continue
        names = [name for name in node.input[2:] if name]
        bias = sum(stored.array(name) for name in names) + added[node.name]
        own = names and len(stored.readers[names[0]]) == 1  # else it is the bias of other layers, too
        name = names[0] if own else f"{node.name}.bias_of_int8"
        stored.put(name, bias.astype(np.float32))
        del node.input[2:]
        node.input.append(name)
    onnx.save(loaded, place)


def _dequantised(quantised: StoredGraph, node: Any) -> list[Any]:
    """What gives the layer that is ``node`` in fp32 its input and its weight, where it reads both from int8."""
    own = next((one for one in quantised.graph.node if one.name == node.name and one.op_type in WITH_BIAS), None)
    makers = [quantised.maker.get(name) for name in own.input[:2]] if own is not None else []
    return makers if all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers) else []


def _weight_in_int8(quantised: StoredGraph, node: Any) -> np.ndarray:
    maker = _dequantised(quantised, node)[1]
    values, scale, zero = (quantised.array(name) for name in maker.input)
    if scale.ndim:  # one for each channel
        axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
        shape = [-1 if at == axis % values.ndim else 1 for at in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (values.astype(np.float32) - zero.astype(np.float32)) * scale


def _mean_inputs(
    model: Any, quantised: StoredGraph, layers: list[Any], feeds: Iterable[Feed]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mean over samples of each input, in fp32 and as int8 rounds and cuts it."""
    values = {node.input[0]: list(_dequantised(quantised, node)[0].input[1:3]) for node in layers}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = {value: (f"{value}.mean", f"{value}.rounded_mean") for value in values}
    for value, scales in values.items():
        _watch(watched, quantised, value, scales, names[value])
    session = _session(watched)
    sums: dict[str, np.ndarray] = {}
    count = 0
    wanted = [name for pair in names.values() for name in pair]
    for feed in feeds:
        samples = len(next(iter(feed.values())))
        count += samples
        for name, mean in zip(wanted, session.run(wanted, feed), strict=True):
            sums[name] = sums.get(name, 0.0) + mean.astype(np.float64) * samples
    means = {name: (total / count).astype(np.float32) for name, total in sums.items()}
    return {value: (means[own], means[rounded]) for value, (own, rounded) in names.items()}


def _watch(model: Any, quantised: StoredGraph, value: str, scales: list[str], outputs: tuple[str, str]) -> None:
    """Add nodes to ``model`` that give the mean of ``value`` over samples, and that of its int8 form."""
    graph, opset = model.graph, next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    scale, zero = (f"{value}.int8_scale", f"{value}.int8_zero")
    for name, source in zip((scale, zero), scales, strict=True):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(quantised.tensors[source])
        tensor.name = name
        graph.initializer.append(tensor)
    rounded = f"{value}.int8"
    graph.node.append(helper.make_node("QuantizeLinear", [value, scale, zero], [f"{rounded}_q"]))
    graph.node.append(helper.make_node("DequantizeLinear", [f"{rounded}_q", scale, zero], [rounded]))
    for source, output in zip((value, rounded), outputs, strict=True):
        if opset < _REDUCES_BY_INPUT:
            graph.node.append(helper.make_node("ReduceMean", [source], [output], axes=[0], keepdims=1))
        else:
            axes = f"{output}.axes"
            graph.initializer.append(helper.make_tensor(axes, TensorProto.INT64, [1], [0]))
            graph.node.append(helper.make_node("ReduceMean", [source, axes], [output], keepdims=1))
        graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))


def _run(node: Any, mean: np.ndarray, weight: np.ndarray, opset: int) -> np.ndarray:
    """What ``node`` makes of ``mean`` with ``weight`` and no bias."""
    one = onnx.NodeProto()
    one.CopyFrom(node)
    del one.input[:], one.output[1:]
    one.input.extend(["x", "w"])
    one.output[0] = "y"
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
             for name, shape in (("x", mean.shape), ("w", weight.shape), ("y", None))]  # fmt: skip
    graph = helper.make_graph([one], "layer", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = _session(model)
    return np.asarray(session.run(None, {"x": mean, "w": weight.astype(np.float32)})[0])


def _session(model: Any) -> Any:
    """Computes what ``model`` says and nothing else: rounding to int8 is not fused away."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
