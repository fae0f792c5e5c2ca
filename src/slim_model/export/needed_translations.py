"""Of the exporter's translations to ONNX those that a program needs, so that it reads no others.

``torch.onnx.export`` reads the source text of some 500 functions of onnxscript at each call and parses it: a second of
processor time, of which a model needs a tenth (torch 2.15, onnxscript 0.7.2).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from slim_model.export.lower import Lowered


@contextlib.contextmanager
def needed_translations(program: Any) -> Iterator[None]:
    """Inside, onnxscript's registry holds the translations of the ATen operators that ``program`` calls, with all their
    overloads, and of what the exporter puts in where it promotes types: other namespaces, and scalars.

    It is left whole where the exporter asks it what to take apart (``program`` is not fully lowered, or calls what is
    not in it), and where onnxscript has no such registry. Not for several threads: the registry is the process's.
    """
    registration = _registration()
    called = program.called() if isinstance(program, Lowered) else None
    if registration is None or called is None or not called <= set(registration.default_registry):
        yield
        return
    every, some = registration.default_registry, registration.Registry()
    packets = {"aten::scalar_tensor", *(name.partition(".")[0] for name in called)}
    for name, functions in every.items():
        if name.partition(".")[0] in packets or not name.startswith("aten::"):
            for function in functions.overloads:
                some.register(function, name)
            for function in functions.complex:
                some.register(function, name, complex=True)
    registration.default_registry = some
    try:
        yield
    finally:
        registration.default_registry = every


def _registration() -> Any:
    """The module of onnxscript (0.5 to 0.7) with the registry, filled; None where it has another form."""
    try:
        from onnxscript.function_libs.torch_lib import ops, registration  # takes half a second; fills the registry
    except ImportError:
        return None
    needed = ("default_registry", "Registry")
    return registration if ops and all(hasattr(registration, name) for name in needed) else None
