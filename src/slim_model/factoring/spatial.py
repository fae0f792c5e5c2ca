"""A convolution as one along columns, then one along rows."""

from __future__ import annotations

from typing import Any

from slim_model.factoring.layers import Layer
from slim_model.factoring.principal import part, precision, principal_axes
from slim_model.factoring.split import Split
from slim_model.ops.linear_form import each
from slim_model.ranking.evidence.moments import Covariances


def split_by_columns(layer: Layer, moments: Covariances | None) -> Split:
    """k x k as k x 1 to r channels, then 1 x k (Jaderberg, Vedaldi, Zisserman, Speeding up Convolutional Neural
    Networks with Low Rank Expansions, BMVC 2014, scheme 2).

    The weight as a map T from a column of the input ``(input, y)`` to what each place beside it gets ``(output, x)``,
    along its principal axes: with S the covariance of columns, U are the eigenvectors of T S T', the first layer is
    U' T and the second U. Places beside each other count as if they were independent. At the left and right border the
    second layer reads zeros, so that no mean is taken out. ``moments``: of the columns.

    A kernel ``[[1, 2], [2, 4]]`` is a column times a row: the shares are ``[1, 0]``.
    """
    weight = layer.matrix
    outputs, inputs, height, width = weight.shape
    map_of_columns = weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height).to(precision(weight))
    spread = None if moments is None else (moments.scatter / moments.count).to(map_of_columns)
    axes = principal_axes(map_of_columns, of_inputs=spread)
    rank = len(axes.first)
    down = axes.first.reshape(rank, inputs, height, 1)
    across = axes.second.reshape(outputs, width, rank).permute(0, 2, 1)[:, :, None]
    return Split(
        (
            part(down, None, weight, _along(layer.options, 0)),
            part(across, layer.constant, weight, _along(layer.options, 1)),
        ),
        (axes.lost,),
    )


def _along(options: dict[str, Any], axis: int) -> dict[str, Any]:
    """The options of a convolution along one axis of the map alone."""
    still = {"stride": 1, "padding": 0, "dilation": 1}
    moved = {name: [rest, rest] for name, rest in still.items()}
    for name in still:
        moved[name][axis] = each(options[name], 2)[axis]
    return options | moved
