"""PyTorch itself: eager, compiled by Inductor, and recorded as a CUDA graph."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim_model.measuring.runtimes.row import Runtime, TimedCall

_Module = Callable[..., object]


def no_cuda() -> str | None:
    return None if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def _no_compiler() -> str | None:
    if any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        return None
    return "not installed: torch.compile needs a C++ compiler, such as g++"


def _no_triton() -> str | None:
    return no_cuda() or (None if importlib.util.find_spec("triton") else "not installed: pip install triton")


def _eager(module: _Module, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    torch.set_num_threads(threads)
    values = [value.detach().cpu() for value in inputs]

    @torch.inference_mode()
    def run() -> None:
        module(*values)

    return run


def _compiled(module: _Module, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    run = _eager(_compile(module), inputs, threads)
    _compile_now(run)
    return run


def _eager_cuda(module: _Module, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    torch.set_num_threads(threads)
    there, values = _moved(module, inputs)

    @torch.inference_mode()
    def run() -> None:
        there(*values)
        torch.cuda.synchronize()

    return run


def _compiled_cuda(module: _Module, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    there, values = _moved(module, inputs)
    run = _eager_cuda(_compile(there), values, threads)
    _compile_now(run)
    return run


def _cuda_graph(module: _Module, inputs: Sequence[Tensor], threads: int) -> TimedCall:
    """Recorded once after three runs on a side stream, as CUDA graphs want it; a run replays the record."""
    torch.set_num_threads(threads)
    there, values = _moved(module, inputs)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                there(*values)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            result = there(*values)
    held: tuple[Any, ...] = (there, values, result)  # the record points into their memory

    def run() -> object:
        graph.replay()
        torch.cuda.synchronize()
        return held

    return run


def _moved(module: _Module, inputs: Sequence[Tensor]) -> tuple[_Module, list[Tensor]]:
    """A module is copied to the device; any other callable must live there already."""
    there = copy.deepcopy(module).to("cuda") if isinstance(module, nn.Module) else module
    return there, [value.detach().to("cuda") for value in inputs]


def _compile(module: _Module) -> _Module:
    return torch.compile(module, dynamic=False)


def _compile_now(run: TimedCall) -> None:
    """The first run compiles. Beyond its limit of variants PyTorch would silently run eagerly: lift it, or fail."""
    with torch._dynamo.config.patch(recompile_limit=10_000, fail_on_recompile_limit_hit=True):
        run()


ROWS = (
    Runtime("pytorch", "cpu", "module", lambda: None, _eager, ("torch",)),
    Runtime("pytorch-compile", "cpu", "module", _no_compiler, _compiled, ("torch",)),
    Runtime("pytorch-cuda", "cuda", "module", no_cuda, _eager_cuda, ("torch",)),
    Runtime("pytorch-compile-cuda", "cuda", "module", _no_triton, _compiled_cuda, ("torch",)),
    Runtime("pytorch-cudagraph", "cuda", "module", no_cuda, _cuda_graph, ("torch",)),
)
