"""Every layer of every micro-net, timed alone, is the same work: as a module, and as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from micronets import NETS
from micronets.compiled import BATCH, coupling_of
from slim_model.cost.counted import CostModel
from slim_model.cost.layer_models import (
    KINDS,
    example_inputs,
    layers_at_widths,
    layers_of,
    module_of_layer,
    stored_bytes,
    write_onnx,
)
from slim_model.graph.nodes import shape_of
from slim_model.ops import LayerShape


def ran(layer: LayerShape) -> Tensor:
    with torch.no_grad():
        found: Tensor = module_of_layer(layer, torch.float32)(*example_inputs(layer, torch.float32))
    return found


@pytest.mark.parametrize("name", NETS)
def test_a_layer_alone_does_the_work_of_its_operator(name: str) -> None:
    """As many outputs as the node has, and as many multiply-adds as its own row counts."""
    coupling = coupling_of(name)
    macs = CostModel(coupling).by_layer()
    for placed in layers_of(coupling, batch=BATCH):
        with FlopCounterMode(display=False) as counter:
            out = ran(placed.layer)
        assert out.numel() == np.prod(shape_of(placed.node.meta["val"])), placed
        batch = BATCH if coupling.graph.inputs[0].dim() else 1
        assert counter.get_total_flops() // 2 // batch == macs.get(placed.node, 0), placed


@pytest.mark.parametrize("name", NETS)
def test_a_small_layer_alone_does_the_work_of_the_small_operator(name: str) -> None:
    """With every other channel gone the widths still are those of one and the same kind of layer."""
    coupling = coupling_of(name)
    keep = coupling.keep_all()
    for group in coupling.groups:
        keep[group.channels[1::2]] = False
    meter = CostModel(coupling)
    macs, small = meter.by_layer(keep), layers_at_widths(meter, keep, batch=BATCH)
    for placed in layers_of(coupling, batch=BATCH):
        layer = small[placed.node]
        assert len(layer.widths) == len(placed.layer.widths)
        assert layer.fixed == placed.layer.fixed
        for before, after, free in zip(placed.layer.widths, layer.widths, placed.free, strict=True):
            assert after == before or (free and after < before), placed
        with FlopCounterMode(display=False) as counter:
            ran(layer)
        assert counter.get_total_flops() // 2 // BATCH == macs.get(placed.node, 0), placed


LAYERS = {
    "conv": LayerShape("conv", 2, ((9, 8), (3, 2), (2, 1), (1, 1), (1, 1), (1, 2), (0, 0), (0,)), (1, 3, 5)),
    "transposed conv": LayerShape("conv", 2, ((5,), (3,), (2,), (1,), (1,), (1,), (1,), (1,)), (1, 3, 4)),
    "pointwise": LayerShape("pointwise", 1, ((4, 4), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), (0, 0), (0,)), (1, 3, 5)),
    "depthwise": LayerShape("depthwise", 1, ((6, 6), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0,)), (4, 1, 2)),
    "grouped": LayerShape("grouped", 1, ((6, 6), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0,)), (2, 3, 4)),
    "linear": LayerShape("linear", 7, (), (6, 5)),
    "matmul": LayerShape("matmul", 2, (), (3, 4, 5, 6)),
    "attention": LayerShape("attention", 2, ((4,), (5,)), (3, 8, 6)),
    "silu": LayerShape("silu", 2, (), (12,)),
    "gelu": LayerShape("gelu", 2, (), (12,)),
    "hardswish": LayerShape("hardswish", 2, (), (12,)),
    "mul": LayerShape("mul", 2, (), (12,)),
    "layer_norm": LayerShape("layer_norm", 6, (), (8,)),
    "nothing": LayerShape("nothing", 1, (), ()),
}


def test_every_kind_is_tried() -> None:
    assert {layer.kind for layer in LAYERS.values()} == set(KINDS)


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_and_module_compute_the_same(name: str, tmp_path: Path) -> None:
    """All copies in the file are summed; each has weights of its own."""
    layer, path = LAYERS[name], tmp_path / "layer.onnx"
    copies = write_onnx(layer, path, torch.float32)
    inputs = example_inputs(layer, torch.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {f"i{n}": x.numpy() for n, x in enumerate(inputs)})
    stored = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer}
    module, expected = module_of_layer(layer, torch.float32), torch.zeros(())
    count = len(list(module.parameters()))
    for copy in range(copies):
        module.weights = nn.ParameterList(stored[f"w{i}_{copy}"] for i in range(count))
        expected = expected + module(*inputs)
    assert copies == KINDS[layer.kind].copies
    if layer.kind == "attention":  # PyTorch scales by the width of a key, which costs nothing to speak of
        q, k, v = inputs
        expected = (q @ k.transpose(-1, -2)).softmax(-1) @ v
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-4)


def test_bytes_of_a_layer() -> None:
    # 4 bytes x (7 x 6 inputs + 5 x 6 weights + 5 biases); four copies of a convolution share one input
    assert stored_bytes(LAYERS["linear"]) == 4 * (42 + 35)
    assert stored_bytes(LAYERS["pointwise"]) == 4 * (3 * 16 + 4 * (15 + 5))


def test_half_precision(tmp_path: Path) -> None:
    write_onnx(LAYERS["linear"], tmp_path / "half.onnx", torch.float16)
    (value, *_) = onnx.load(tmp_path / "half.onnx").graph.input
    assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert example_inputs(LAYERS["linear"], torch.float16)[0].dtype is torch.float16
