"""Context managers for as long as a stage needs them: eval mode, and PyTorch without its own log lines."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import fx, nn


@contextlib.contextmanager
def silence_torch() -> Iterator[None]:
    """Suppress what PyTorch warns, logs and prints while it traces and exports: it is not the user's concern."""
    names = ("torch.onnx", "torch.export", "torch._subclasses", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode, without gradients; its training flags are put back at the end."""
    training = [module for module in model.modules() if module.training and not isinstance(model, fx.GraphModule)]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
