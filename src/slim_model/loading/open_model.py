"""The bytes of a file -> the model in it, or the one that ``--arch`` names with the weights in it."""

from __future__ import annotations

import functools
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from slim_model.errors import InputError
from slim_model.from_onnx.read import read_onnx
from slim_model.graph.autocast import autocast_types
from slim_model.loading.architecture import build
from slim_model.loading.file_bytes import FileBytes, TooMuch, read_beside
from slim_model.loading.file_form import WITH_ARTICLE, Form, damage, form_of
from slim_model.loading.input_spec import describe_error
from slim_model.loading.libraries.table import NO_RAW_HEADS, InUse, Library, library_of, version_that_wrote
from slim_model.loading.pickles.machine import LEGACY_MAGIC, Inert
from slim_model.loading.pickles.saved_file import read_saved
from slim_model.loading.pickles.settle import Refused, settle
from slim_model.loading.safe_archive import Unsafe, vet_names, vet_program, vet_script
from slim_model.loading.source import SourceOptions
from slim_model.loading.user_code import import_file, make_importable
from slim_model.loading.weights.checkpoint import Checkpoint, Weights, checkpoint
from slim_model.ops import row_of

Kind = Literal["module", "state dict", "exported program", "torchscript", "onnx", "folder of transformers"]

_WITH_ARCHITECTURE: tuple[Form, ...] = ("exported program", "torchscript", "onnx")
_ARCHS = "--arch torchvision:resnet50, timm:NAME, path/file.py:callable or package.module:callable"


@dataclass(frozen=True, slots=True)
class Opened:
    """``model`` in eval mode; ``program`` of a .pt2. ``image_sides``: what the file says that it was
    trained on. ``library``: whose class it is; ``use``: how that exports it; ``beside``: what the file held besides."""

    model: nn.Module
    kind: Kind
    program: ExportedProgram | None = None
    notes: tuple[str, ...] = ()
    image_sides: tuple[int, ...] = ()
    library: Library | None = None
    use: InUse = field(default_factory=InUse)
    beside: Mapping[str, Any] = field(default_factory=dict)


def open_model(file: FileBytes, options: SourceOptions) -> Opened:
    """The model of a file; an InputError says what is wrong with it and what to do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form = form_of(file)
            if form in _WITH_ARCHITECTURE:
                return _open_archive(file, form, options)
    except TooMuch as error:
        raise InputError(_too_much(error)) from error
    saved = open_checkpoint(file, options)
    if options.arch is not None and saved.weights:
        model, notes = build(
            options.arch, saved, prefix=options.prefix, strict=options.strict, trusted=options.trust_pickle
        )
        opened = Opened(model.eval(), "state dict", None, notes, saved.image_sides)
    else:
        opened = _model_within(saved, options)
    return _in_use(opened, saved, options)


def _in_use(opened: Opened, saved: Checkpoint, options: SourceOptions) -> Opened:
    """The model in the form that its library exports, where that is another than the one it is trained in."""
    library = library_of(opened.model)
    if library is None or library.in_use is None:
        if options.raw_heads:
            raise InputError(f"holds a {type(opened.model).__name__}, {NO_RAW_HEADS}")
        return replace(opened, library=library)
    use: InUse = library.in_use(opened.model, options.raw_heads)
    return replace(
        opened,
        library=library,
        use=use,
        notes=(*opened.notes, *use.notes),
        image_sides=opened.image_sides or use.sides,
        beside=saved.beside,
    )


def open_checkpoint(file: FileBytes, options: SourceOptions) -> Checkpoint:
    """What a pickle or a safetensors file holds, at ``--key`` where that is given."""
    form: Form = "pickle"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            form = form_of(file)
            _check_arch(form, options)
            if form == "safetensors":
                from safetensors.torch import load as load_safetensors

                content: Any = load_safetensors(file.content)
            elif options.trust_pickle:
                content = _unpickle_trusted(file.content, options.code)
            else:
                content = read_saved(file.content)
            return checkpoint(content).at(options.key)
    except InputError:
        raise
    except (TooMuch, RecursionError) as error:
        raise InputError(_too_much(error)) from error
    except Exception as error:  # damaged files fail in many ways
        raise InputError(damage(form, error)) from error


def _check_arch(form: Form, options: SourceOptions) -> None:
    if options.arch is not None and form in _WITH_ARCHITECTURE:
        raise InputError(f"is {WITH_ARTICLE[form]}, which has its own architecture. Leave out --arch.")


def _open_archive(file: FileBytes, form: Form, options: SourceOptions) -> Opened:
    _check_arch(form, options)
    try:
        if form == "exported program":
            return _open_program(file.content, trusted=options.trust_pickle)
        if form == "onnx":
            return _open_onnx(file, trusted=options.trust_pickle)
        return Opened(_load_script(file.content, trusted=options.trust_pickle), "torchscript")
    except (InputError, TooMuch):
        raise
    except Unsafe as error:
        raise InputError(
            f"is refused: {error}, which an exported model does not need. "
            "If you trust the file, say so with --trust-pickle."
        ) from error
    except Exception as error:
        raise InputError(damage(form, error)) from error


def _open_onnx(file: FileBytes, *, trusted: bool) -> Opened:
    beside = functools.partial(read_beside, file.path, limited=not trusted)
    model = read_onnx(file.content, file.path.name, beside)
    notes = ("its float16 weights were turned into float32, which the small model is written in",)
    return Opened(model.eval(), "onnx", notes=notes if model.file.half else ())


def _open_program(content: bytes, *, trusted: bool) -> Opened:
    program = _load_program(content, trusted=trusted)
    try:
        return Opened(program.module(check_guards=False), "exported program", program)
    except Exception as error:
        raise InputError(
            f"is an exported program that torch {torch.__version__} cannot turn into a module: "
            f"{describe_error(error)}. Export it again with this torch, or give the PyTorch model."
        ) from error


def _load_program(content: bytes, *, trusted: bool) -> ExportedProgram:
    # torch.export.load would log what goes wrong, and then raise something else
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive._package import load_pt2

    if not trusted:
        vet_program(content)
    program = load_pt2(io.BytesIO(content)).exported_programs["model"]
    program._guards_code = []  # text that module() would execute; it only checks inputs
    for node in program.graph.nodes:
        if _trains(node):
            raise InputError("was exported in training mode. Call model.eval() before torch.export.export.")
    if autocast_types(program):
        _drop_type_checks(program)
    tensors = (*program.state_dict.values(), *program.constants.values())
    if any(isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu" for tensor in tensors):
        program = move_to_device_pass(program, "cpu")
    return program


def _drop_type_checks(program: ExportedProgram) -> None:
    """Autocast regions are computed in float32 here, and the program would refuse to find that type behind them."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in list(module.graph.nodes):
                if node.target is torch.ops.aten._assert_tensor_metadata.default:
                    module.graph.erase_node(node)
            module.recompile()


def _trains(node: torch.fx.Node) -> bool:
    """True for a dropout or norm that behaves as in training."""
    row = row_of(node.target) if node.op == "call_function" else None
    return row is not None and row.training_switch is not None and row.training_switch.is_on(node)


def _load_script(content: bytes, *, trusted: bool) -> nn.Module:
    if not trusted:
        vet_script(content)
    model: nn.Module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    if not trusted:
        vet_names(model)
    return model.eval()


def _unpickle_trusted(content: bytes, code: Path | None) -> Any:
    """What ``torch.save`` wrote, as Python's own pickle reads it: it runs what the file says."""
    make_importable(Path())
    main = import_file(code) if code else None

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _main_class(main, name, code) if module == "__main__" else super().find_class(module, name)

    as_pickle = SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=pickle.load)
    try:
        if not content.startswith(b"PK") and LEGACY_MAGIC not in content[:64]:
            return Unpickler(io.BytesIO(content)).load()  # of pickle.dump
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=as_pickle)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"needs a class that is not here: {describe_error(error)}. Start slim-model in the folder where the "
            "model's code can be imported, or install the package it is from."
        ) from error


def _main_class(main: ModuleType | None, name: str, code: Path | None) -> Any:
    if main is None:
        raise InputError(f"holds {name} from the script that saved it. Name that script: --code path/train.py.")
    attribute: Any = main
    for part in name.split("."):
        if not hasattr(attribute, part):
            raise InputError(f"holds {name}, which {code} does not define. Give the script that does with --code.")
        attribute = getattr(attribute, part)
    return attribute


def _model_within(saved: Checkpoint, options: SourceOptions) -> Opened:
    """The model that a checkpoint itself holds."""
    models = [weights for weights in saved.weights if weights.model is not None]
    if models and options.arch is None:
        first, *others = models
        try:
            model = settle(first.model) if isinstance(first.model, Inert) else first.model
        except Refused as error:
            raise InputError(_refusal(error)) from error
        except (RecursionError, TooMuch) as error:
            raise InputError(_too_much(error)) from error
        return Opened(model.eval(), "module", None, _which(first, others), saved.image_sides)
    if saved.unknown is not None:
        raise InputError(_refusal(Refused(saved.unknown)))
    if not saved.weights:
        raise InputError(f"holds neither a model nor a state dict but {saved.summary}. Save the model in it.")
    # Weights alone say nothing of the forward: the user names the architecture.
    first = saved.weights[0]
    name, tensor = next(iter(first.tensors.items()))
    more = f" It holds {saved.listed()}." if len(saved.weights) > 1 else ""
    if wrote := version_that_wrote(saved.beside):
        more += f" {wrote} wrote it: --arch path/train.py:CLASS calls CLASS with the options that it keeps."
    raise InputError(
        f"holds a state dict ({len(first.tensors)} tensors, the first {name} of shape {tuple(tensor.shape)}), which "
        f"does not say how they are used.{more} Name the architecture: {_ARCHS}."
    )


def _which(taken: Weights, others: list[Weights]) -> tuple[str, ...]:
    """What was taken, where it is not the one model of the file as it was trained."""
    kind = ", the averages over the steps of training," if taken.averaged else ""
    if others:
        return (f"the model at {taken.path!r}{kind} was taken; --key {others[0].path} takes the other",)
    return (f"the model at {taken.path!r}{kind} was taken",) if kind else ()


# -- words ------------------------------------------------------------------------------------------------------------


def _refusal(error: Refused) -> str:
    if error.name.startswith("__main__."):
        cls = error.name.removeprefix("__main__.")
        trusted = f"--trust-pickle --code path/train.py, where train.py is the script that defines {cls}"
        arch = f"--arch path/train.py:{cls}"
    else:
        trusted, arch = "--trust-pickle", "--arch path/file.py:callable"
    return (
        f"is refused: {error}, because loading it would run code that the file names. Give {arch} to take only the "
        f"weights from the file, or a .pt2 from torch.export.save. If you trust the file: {trusted}."
    )


def _too_much(error: Exception) -> str:
    what = "its parts are nested too deep" if isinstance(error, RecursionError) else str(error)
    return (
        f"is refused: {what}. No trained model looks like that; save the state_dict alone, or, if you trust the file, "
        "say so with --trust-pickle."
    )
