"""A convolution as three: fewer inputs, the kernel between, more outputs."""

from __future__ import annotations

from dataclasses import replace

from slim_model.factoring.layers import Layer
from slim_model.factoring.principal import part, precision, principal_axes, split_by_outputs
from slim_model.factoring.split import Split, pointwise_options
from slim_model.ranking.evidence.moments import Covariances


def split_both_sides(layer: Layer, outputs: Covariances | None, inputs: Covariances | None) -> Split:
    """k x k as 1x1 to r1 channels, k x k to r2, then 1x1 (Tucker-2: Kim, Park, Yoo, Choi, Yang, Shin, Compression of
    Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications, ICLR 2016).

    First the inputs: the weight as a map from one input to every output and tap, along its principal axes in the metric
    of the inputs' covariance, taps counting as if they were independent. The kernel that is left is then split by its
    outputs, as ``split_by_outputs`` does. Without data this is the higher-order SVD.
    """
    weight = layer.matrix
    made, taken, *kernel = weight.shape
    flat = weight.movedim(1, -1).reshape(-1, taken).to(precision(weight))
    spread = None if inputs is None else (inputs.scatter / inputs.count).to(flat)
    axes = principal_axes(flat, of_inputs=spread)
    rank = len(axes.first)
    core = axes.second.reshape(made, *kernel, rank).movedim(-1, 1)
    behind = split_by_outputs(replace(layer, matrix=core), outputs)
    first = part(axes.first.reshape(rank, taken, *[1] * len(kernel)), None, weight, pointwise_options(layer.options))
    rest = [part(one.weight, one.bias, weight, one.options) for one in behind.parts]
    return Split((first, *rest), (axes.lost, *behind.lost))
