"""The file the user names, as a model in eval mode with example inputs that run.

The kind of file is recognised from its content, which is read once. Nothing in it is executed unless the user trusts
it: ``saved_file`` reads pickles, ``safe_archive`` looks through archives, ``architecture`` makes the model that
``--arch`` names. What the model then does with time and memory is seen in a rehearsal first.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from slim_model.calling.arguments import Arguments
from slim_model.calling.nesting import leaves_of
from slim_model.errors import InputError
from slim_model.from_onnx.model import OnnxModel
from slim_model.from_onnx.original import Original
from slim_model.graph.graph import Graph
from slim_model.loading import limits
from slim_model.loading.example_inputs import guess_inputs, run_once
from slim_model.loading.file_bytes import FileBytes, read_file
from slim_model.loading.file_form import names_in_code
from slim_model.loading.given.example_file import HeldExample, example_arguments, read_example
from slim_model.loading.given.file_inputs import file_arguments, is_said
from slim_model.loading.given.place_inputs import make_arguments
from slim_model.loading.input_spec import InputSpec, TensorSpec, parse_input, spec_of
from slim_model.loading.libraries.table import InUse, Library, packages
from slim_model.loading.open_model import Kind, Opened, open_checkpoint, open_model
from slim_model.loading.rehearse import TRUST, rehearse
from slim_model.loading.source import SourceOptions
from slim_model.loading.value_sizes import ValuesUpTo

_NO_OPTIONS = SourceOptions()
Specs = list[InputSpec] | HeldExample


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be made smaller. ``model`` is in eval mode and runs on ``inputs``, as was tried."""

    model: nn.Module  # of an exported program: its module()
    arguments: Arguments  # what it is called with
    source: str  # what the user typed
    sha256: str  # of the file's bytes
    kind: Kind
    program: ExportedProgram | None  # of a .pt2
    notes: tuple[str, ...] = ()  # what was assumed, for the user
    library: Library | None = None  # whose class the model is
    use: InUse = field(default_factory=InUse)  # how that exports it
    beside: Mapping[str, Any] = field(default_factory=dict)  # what the file held besides the model

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The tensors among the arguments, in order."""
        return self.arguments.tensors

    def named(self, graph: Graph) -> Graph:
        """``graph`` with the inputs and outputs called as the library's own export calls them."""
        use, outputs = self.use, graph.outputs
        if len(use.inputs) == len(graph.input_names):
            graph = replace(graph, input_names=use.inputs)
        if len(use.outputs) == len(outputs.names):
            graph = replace(graph, outputs=replace(outputs, names=use.outputs))
        return graph

    def small_file(self, module: nn.Module) -> Any:
        """What ``torch.save`` writes of the small ``module``, of the model's own class, for its library to load."""
        return self.library.file(module, self.beside) if self.library and self.library.file else module


def load(path: str | Path, options: SourceOptions = _NO_OPTIONS, *, seed: int = 0) -> Subject:
    """The model in ``path`` with example inputs; an InputError says what is wrong and what to do."""
    source = str(path)
    try:
        specs = _specs(options)
        file = read_file(Path(path), limited=not options.trust_pickle)
        rehearsed = None if options.trust_pickle else _rehearsed(file, options, specs, seed)
        # The rehearsal ran in a process that might hang or fill the memory; here the same bytes and inputs are safe.
        opened = open_model(file, options)
        known_specs = specs or [parse_input(spec) for spec in rehearsed or ()]
        arguments, notes = _ready(opened, known_specs, seed, tried=rehearsed is not None)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    guessed = () if specs or _says_inputs(opened) else (_tried(arguments.tensors, opened),)
    return Subject(
        model=opened.model,
        arguments=arguments,
        source=source,
        sha256=file.sha256,
        kind=opened.kind,
        program=opened.program,
        notes=(*opened.notes, *guessed, *notes),
        library=opened.library,
        use=opened.use,
        beside=opened.beside,
    )


def _specs(options: SourceOptions) -> Specs:
    """What the user said of the inputs."""
    if options.example is None:
        return [parse_input(spec) for spec in options.inputs]
    if options.inputs:
        raise InputError("--example has all inputs; leave out --input.")
    return HeldExample(read_example(options.example))


def _types(specs: Specs) -> set[torch.dtype]:
    """Of the tensors that were given."""
    if isinstance(specs, HeldExample):
        return {leaf.value.dtype for leaf in leaves_of(specs.held) if isinstance(leaf.value, torch.Tensor)}
    return {spec.given.dtype for spec in specs if isinstance(spec.given, TensorSpec)}


def _bytes(spec: InputSpec) -> int:
    tensor = spec.given
    return math.prod(tensor.shape) * tensor.dtype.itemsize if isinstance(tensor, TensorSpec) else 0


def _rehearsed(file: FileBytes, options: SourceOptions, specs: Specs, seed: int) -> list[str] | None:
    """Read the file and run its model in a process that may hang or fill the memory; the inputs that were found for
    it, as typed after ``--input`` (none where they are known), or None where nothing was run: the model is of
    ``--arch``, the user's own code."""

    def work() -> list[str] | None:
        if options.arch is not None and open_checkpoint(file, options).weights:
            return None
        opened = open_model(file, options)
        arguments = _ready_within_limits(opened, specs, seed, (len(file.content), typed))
        if isinstance(opened.model, OnnxModel):  # onnxruntime will run it, too, to compare
            Original(opened.model).run(arguments.args)
        guessed = not specs and not _says_inputs(opened)
        return [spec_of(x.shape, x.dtype) for x in arguments.tensors] if guessed else []

    # Once, for the copy of this process and for what follows: it takes seconds. Operators of an archive need it, too.
    for library in packages():
        if library.encode() in file.content or names_in_code(file.content, library):
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
    typed = specs.bytes() if isinstance(specs, HeldExample) else sum(map(_bytes, specs))
    inputs: list[str] | None = rehearse(work, file_bytes=len(file.content), typed_bytes=typed)
    return inputs


def _ready_within_limits(opened: Opened, specs: Specs, seed: int, given: tuple[int, int]) -> Arguments:
    """The inputs that `_ready` finds, if no value that the model makes of them is beyond the limit. ``given``: bytes of
    the file, and of the inputs that were typed."""
    values = ValuesUpTo(limits.value_limit(*given, _told_bytes(opened)))
    try:
        with values:
            return _ready(opened, specs, seed)[0]
    except InputError as error:
        if not values.first:
            raise
        raise InputError(
            f"its forward makes {values.first}; {values.limit / 1e6:,.0f} MB are the limit where nobody typed an input "
            f"as large as that explains. Give --input, of the shape that it is used with or a smaller one. {TRUST}"
        ) from error


def _told_bytes(opened: Opened) -> int:
    """Of the inputs that the file holds, or says the sizes of."""
    if isinstance(opened.model, OnnxModel):
        sizes = [[d for d in s.dims or () if isinstance(d, int)] for s in opened.model.signatures]
        return sum(math.prod(d) * s.dtype.itemsize for d, s in zip(sizes, opened.model.signatures, strict=True))
    held = pytree.tree_leaves(opened.program.example_inputs) if opened.program else []
    return sum(x.untyped_storage().nbytes() for x in held if isinstance(x, torch.Tensor))


def _ready(opened: Opened, specs: Specs, seed: int, *, tried: bool = False) -> tuple[Arguments, tuple[str, ...]]:
    """Example inputs that the model runs on, and notes; the model is turned into float32. ``tried``: the same bytes and
    inputs went through this in the rehearsal, so numbers are not looked through and the model is not run again."""
    if not tried:
        _check_numbers(opened.model)
    precision = _in_float32(opened.model, opened.kind)
    try:
        arguments = _examples(opened, specs, seed)
        if precision:
            arguments = arguments.filled(tuple(x.float() if x.is_floating_point() else x for x in arguments.tensors))
        if not tried:
            run_once(opened.model, arguments)
    except InputError as error:
        given = {dtype for dtype in _types(specs) if dtype.is_floating_point}
        kind = next((kind for kind in _OTHER_KINDS if kind in str(error)), "")
        if kind and (precision or given <= {torch.float32}):
            raise InputError(
                f"its weights are float32 here, and its forward turns values into {kind} all the same: {error} Take "
                f"{_OTHER_KINDS[kind]} out of the forward, or make it follow the type of the weights."
            ) from error
        raise
    return arguments, precision


_OTHER_KINDS = {"BFloat16": ".bfloat16()", "Half": ".half()", "Double": ".double()"}
"""Types as PyTorch's messages call them, and what turns values into them."""


def _check_numbers(model: nn.Module) -> None:
    """Refuse NaN and infinity; a buffer of 0 and -infinity is an attention mask and may stay."""
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"has no values for {name}: it is on the meta device. Load its weights and save again.")
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        if name in buffers and bool(((tensor == 0) | (tensor == -torch.inf)).all()):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{name} holds NaN or infinity ({bad} of {tensor.numel()} numbers). The training may have diverged: "
            "give an earlier checkpoint."
        )


def _in_float32(model: nn.Module, kind: Kind) -> tuple[str, ...]:
    """What is proven to a millionth, and what onnxruntime has all operators for; a note where that is a change."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if not dtypes:
        return ()
    said = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    if kind == "exported program":
        raise InputError(f"holds {said} weights. Export it again in float32: torch.export.export(model.float(), ...).")
    model.float()
    return (f"its {said} weights were turned into float32, which the small model is written in",)


def _examples(opened: Opened, specs: Specs, seed: int) -> Arguments:
    if isinstance(specs, HeldExample):
        return example_arguments(opened.model, specs.held)
    if isinstance(opened.model, OnnxModel):
        return file_arguments(opened.model, specs, seed)
    if specs:
        return make_arguments(opened.model, specs, seed)
    if opened.program is not None:
        return _carried(opened.program)
    return Arguments(guess_inputs(opened.model, seed, sides=opened.image_sides))


def _says_inputs(opened: Opened) -> bool:
    """Whether the file itself says what the model takes."""
    return opened.program is not None or (isinstance(opened.model, OnnxModel) and is_said(opened.model))


def _tried(inputs: tuple[torch.Tensor, ...], opened: Opened) -> str:
    shape = spec_of(inputs[0].shape, inputs[0].dtype)
    if inputs[0].dim() > 1 and inputs[0].shape[-1] in opened.image_sides:
        return f"no --input was given; {shape} was taken: the file says that it was trained on that size"
    return f"no --input was given; {shape} was tried and works"


def _carried(program: ExportedProgram) -> Arguments:
    carried = Arguments(*(program.example_inputs or ()))
    if not carried.tensors:
        raise InputError(
            "carries no example inputs that are tensors. Export it as torch.export.export(model, (tensor, ...), "
            "{'name': tensor}), or give --input 1x3x224x224 for each."
        )
    return carried.filled(tuple(x.detach().cpu() for x in carried.tensors))
