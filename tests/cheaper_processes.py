"""What a process that slims many nets need not do for each of them."""

from __future__ import annotations

import functools
import gc
import importlib
from typing import Any

from onnxscript.function_libs.torch_lib import registration
from torch.onnx._internal._lazy_import import onnxscript_apis


def read_onnx_operators_once() -> None:
    """torch.onnx reads the source of some 500 functions anew at each export, which takes most of a second. The registry
    that holds them is another one where few are needed."""
    module: Any = onnxscript_apis
    held: Any = functools.cache(lambda _: importlib.import_module(module._name).get_torchlib_ops())
    module.get_torchlib_ops = lambda: held(registration.default_registry)


def collect_less_often() -> None:
    """What is loaded by now, some million objects, lives as long as the process: no collection looks at it."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
