"""A module that takes its tensors by position, however the user's own takes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slim_model.calling.arguments import Arguments


def flat_module(model: nn.Module, arguments: Arguments) -> nn.Module:
    """A module that returns for ``arguments.tensors``, by position, what ``model`` does for ``arguments``."""
    return model if arguments.plain else _FlatModule(model, arguments)


class _FlatModule(nn.Module):
    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, *tensors: Tensor) -> Any:
        return self.arguments.filled(tensors).call(self.model)
