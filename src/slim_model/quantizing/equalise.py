"""Cross-layer equalisation: int8 has one scale for all channels of an activation, so channels are made alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from slim_model.quantizing.float_model import FloatModel
from slim_model.quantizing.stored_weights import StoredGraph, attributes_of, grouped, layers_with_bias

_BETWEEN = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten")
"""Operators f with f(s x) = s f(x) for every s > 0, channel by channel. Clip is none: its limit would have to be one
for each channel, for which there is no int8 kernel."""
_SWEEPS = 20
_LARGEST = 16
"""Exponent of two; beyond it a channel was as good as dead."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Layer ``first`` writes the channels that ``then`` alone reads: each of them as ``repeat`` inputs in a row."""

    first: str
    then: str
    repeat: int


def equalise(model: FloatModel) -> FloatModel | None:
    """``model`` with channels scaled between each layer and the next, so that the weights (and biases) that write a
    channel are as large as those that read it; None where no two layers follow each other so.

    Of a channel written with at most r1 and read with at most r2, s = sqrt(r1 / r2) divides the first and multiplies
    the second, in turns over all pairs until nothing moves (Nagel et al., "Data-free quantization through weight
    equalization and bias correction", ICCV 2019, formula 11). s is rounded to a power of two: fp32 gives the same bits.
    """
    loaded = onnx.load(model.path)
    stored = StoredGraph.of(loaded)
    pairs = list(_pairs(stored))
    if not pairs:
        return None
    nodes = {node.name: node for node in layers_with_bias(stored)}
    exponents = _exponents(stored, nodes, pairs)
    for pair, exponent in exponents.items():
        _scale(stored, nodes[pair.first], nodes[pair.then], pair, np.exp2(exponent))
    place = model.path.with_name("equalised.onnx")
    onnx.save(loaded, place)
    return replace(model, path=place)


def _pairs(stored: StoredGraph) -> Iterator[_Pair]:
    layers = {node.name: node for node in layers_with_bias(stored) if _scalable(stored, node)}
    for name, node in layers.items():
        value = node.output[0]
        while (reader := stored.only_reader(value)) and reader.op_type in _BETWEEN:
            value = reader.output[0]
        if reader is None or reader.name not in layers or reader.input[0] != value:
            continue
        outputs, inputs = _outputs(stored, node), _inputs(stored, reader)
        if inputs % outputs == 0:  # flattened pictures: as many inputs of one channel as it has pixels
            yield _Pair(name, reader.name, inputs // outputs)


def _scalable(stored: StoredGraph, node: Any) -> bool:
    """Nobody else has its weights, and its bias, if it has one, is one number a channel."""
    about = attributes_of(node)
    own = all(len(stored.readers[name]) == 1 for name in node.input[1:] if name)
    plain = not about.get("transA") and about.get("alpha", 1.0) == about.get("beta", 1.0) == 1.0
    biases = [stored.array(name).shape for name in node.input[2:] if name]
    return own and plain and all(shape == (_outputs(stored, node),) for shape in biases)


def _view(stored: StoredGraph, node: Any) -> np.ndarray:
    return grouped(node, stored.array(node.input[1]))


def _outputs(stored: StoredGraph, node: Any) -> int:
    groups, outputs, _, _ = _view(stored, node).shape
    return int(groups * outputs)


def _inputs(stored: StoredGraph, node: Any) -> int:
    groups, _, inputs, _ = _view(stored, node).shape
    return int(groups * inputs)


def _exponents(stored: StoredGraph, nodes: dict[str, Any], pairs: list[_Pair]) -> dict[_Pair, np.ndarray]:
    """For each pair and channel the power of two that it is divided by."""
    # the largest weight of each (group, output, input), and the bias of each output: all that ranges depend on
    names = {name for pair in pairs for name in (pair.first, pair.then)}
    largest = {name: np.abs(_view(stored, nodes[name])).max(3).astype(np.float64) for name in names}
    biases = {name: _bias(stored, nodes[name]) for name in names}
    found = {pair: np.zeros(len(biases[pair.first])) for pair in pairs}
    for _ in range(_SWEEPS):
        moved = 0.0
        for pair in pairs:
            written = np.maximum(largest[pair.first].max(2).ravel(), biases[pair.first])
            read = largest[pair.then].max(1).reshape(len(written), pair.repeat).max(1)
            alive = (written > 0) & (read > 0)
            step = np.zeros(len(written))
            step[alive] = np.log2(written[alive] / read[alive]) / 2
            found[pair] += step
            largest[pair.first] /= np.exp2(step).reshape(*largest[pair.first].shape[:2], 1)
            biases[pair.first] /= np.exp2(step)
            then = largest[pair.then]
            then *= np.exp2(np.repeat(step, pair.repeat)).reshape(then.shape[0], 1, then.shape[2])
            moved = max(moved, float(np.abs(step).max()))
        if moved < 0.01:
            break
    return {pair: np.clip(np.rint(x), -_LARGEST, _LARGEST) for pair, x in found.items()}


def _bias(stored: StoredGraph, node: Any) -> np.ndarray:
    named = [name for name in node.input[2:] if name]
    return np.abs(stored.array(named[0])).astype(np.float64) if named else np.zeros(_outputs(stored, node))


def _scale(stored: StoredGraph, first: Any, then: Any, pair: _Pair, scale: np.ndarray) -> None:
    """Write the weights of both layers, and the bias of the first, anew."""
    scale = scale.astype(np.float32)
    writing = stored.array(first.input[1]).copy()
    view = grouped(first, writing)
    view /= scale.reshape(*view.shape[:2], 1, 1)
    stored.put(first.input[1], writing)
    for name in first.input[2:]:
        stored.put(name, stored.array(name) / scale)
    reading = stored.array(then.input[1]).copy()
    view = grouped(then, reading)
    view *= np.repeat(scale, pair.repeat).reshape(view.shape[0], 1, view.shape[2], 1)
    stored.put(then.input[1], reading)
