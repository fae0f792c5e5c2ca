"""Layers of a module that were factored -> a Sequential of layers of torch.nn in the place of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from slim_model.graph.graph import Factor, Factored


def put_in_a_row(model: nn.Module, factored: Iterable[Factored], tensors: Mapping[str, Tensor]) -> None:
    """Replace each ``factored`` layer of ``model`` by its factors, with the values that ``tensors`` has of them.

    Raises AttributeError where a weight is none of a layer of its own (fused projections of attention): then the model
    cannot be written so.
    """
    for layer in factored:
        old = model.get_submodule(layer.path)
        if not isinstance(old, nn.Linear | nn.modules.conv._ConvNd):
            raise AttributeError(f"'{layer.path}' is no layer that a Sequential can stand for")
        row = nn.Sequential(*(_layer(factor, tensors, trained=old.weight.requires_grad) for factor in layer.factors))
        model.set_submodule(layer.path, row.train(old.training))


def _layer(factor: Factor, tensors: Mapping[str, Tensor], *, trained: bool) -> nn.Module:
    """The layer of torch.nn that holds these tensors; its sizes follow from them."""
    weight = tensors[factor.weight]
    made, taken = weight.shape[:2]
    biased = factor.bias is not None
    if weight.dim() == 2:
        layer: nn.Module = nn.Linear(taken, made, bias=biased, device="meta")
    else:
        options = {name: factor.options[name] for name in ("stride", "padding", "dilation", "groups")}
        options = {name: tuple(x) if isinstance(x, list) else x for name, x in options.items()}
        convolution = getattr(nn, f"Conv{weight.dim() - 2}d")
        kernel = tuple(weight.shape[2:])
        layer = convolution(taken * options["groups"], made, kernel, bias=biased, device="meta", **options)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if factor.bias is not None:
        layer.bias = nn.Parameter(tensors[factor.bias].detach().clone(), requires_grad=trained)
    return layer
