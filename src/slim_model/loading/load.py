"""The file the user names, as a model in eval mode with example inputs that run.

The kind of file is recognised from its content. Nothing in it is executed unless the user trusts it: `unpickle`
reads pickles, `vet` looks through archives, `build` makes the model that ``--arch`` names.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

from slim_model.errors import InputError
from slim_model.loading.architecture import build
from slim_model.loading.checkpoint import Checkpoint, checkpoint
from slim_model.loading.example_inputs import guess_inputs, make_inputs, run_once
from slim_model.loading.input_spec import describe, parse_input, spec_of
from slim_model.loading.safe_archive import Unsafe, vet_names, vet_program, vet_script
from slim_model.loading.safe_pickle import Refused, unpickle
from slim_model.loading.source import SourceOptions
from slim_model.loading.user_code import import_file, make_importable
from slim_model.ops import row_of

__all__ = ["Subject", "file_sha256", "guess_inputs", "load", "parse_input"]

Kind = Literal["module", "state dict", "exported program", "torchscript"]

_ARTICLE = {"exported program": "an exported program", "torchscript": "a TorchScript archive"}
_ARCHS = "--arch torchvision:resnet50, timm:NAME, path/file.py:callable or package.module:callable"
#: Starts every file that torch.save wrote before it wrote zip archives.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FOREIGN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself. Fetch it: git lfs pull."),
    (b"\x89HDF", "is an HDF5 (Keras) file. Give the PyTorch model."),
    (b"\x1f\x8b", "is a gzip archive. Unpack it and give the model inside."),
    (b"<", "is an HTML or XML page, perhaps of a download that failed. Give the model file."),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be made smaller. ``model`` is in eval mode and was run once on ``inputs``."""

    model: nn.Module  # of an exported program: its module()
    inputs: tuple[torch.Tensor, ...]  # positional
    source: str  # what the user typed
    sha256: str  # of the file's bytes
    kind: Kind
    program: ExportedProgram | None  # of a .pt2
    notes: tuple[str, ...] = ()  # what was assumed, for the user


def load(
    path: str | Path,
    options: SourceOptions = SourceOptions(),
    *,
    seed: int = 0,
) -> Subject:
    """The model in ``path`` with example inputs that run; an InputError says what is wrong and what to do."""
    source = str(path)
    try:
        specs = [parse_input(spec) for spec in options.inputs]
        path = _readable(Path(path))
        model, kind, program = _open(path, options)
        _check_numbers(model)
        precision = _in_float32(model, kind)
        examples, notes = _examples(model, program, specs, seed)
        if precision:
            examples = tuple(x.float() if x.is_floating_point() else x for x in examples)
        run_once(model, examples)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return Subject(model, examples, source, file_sha256(path), kind, program, (*notes, *precision))


def _open(path: Path, options: SourceOptions) -> tuple[nn.Module, Kind, ExportedProgram | None]:
    form, arch, trust_pickle = _form(path), options.arch, options.trust_pickle
    if arch is not None and form in ("exported program", "torchscript"):
        raise InputError(f"is {_ARTICLE[form]}, which has its own architecture. Leave out --arch.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form == "exported program":
                program = _load_program(path, trusted=trust_pickle)
                return program.module(check_guards=False), "exported program", program
            if form == "torchscript":
                return _load_script(path, trusted=trust_pickle), "torchscript", None
            if form == "safetensors":
                from safetensors.torch import load_file

                held: Any = load_file(path)
            elif trust_pickle:
                held = _unpickle_trusted(path, options.code)
            else:
                held = unpickle(path, inert=arch is not None)
            found = checkpoint(held)
    except InputError:
        raise
    except Refused as error:
        raise InputError(_refusal(error, arch)) from error
    except Unsafe as error:
        raise InputError(
            f"is refused: {error}, which an exported model does not need. "
            "If you trust the file, say so with --trust-pickle."
        ) from error
    except Exception as error:  # damaged files fail in many ways
        raise InputError(_damage(form, error)) from error
    return *_model_of(found, arch), None


def _readable(path: Path) -> Path:
    if path.is_dir():
        raise InputError("is a folder. Give the model file in it.")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise InputError("there is no such file.") from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}.") from error
    if empty:
        raise InputError("is empty. It may not have been written or copied to the end.")
    return path


def _form(path: Path) -> str:
    """What ``path`` is, from its content: "exported program", "torchscript", "safetensors" or "pickle"."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        return _form_of_zip(path)
    if head[:1] == b"\x80" and _LEGACY_MAGIC in head:
        return "pickle"
    if head[:1] == b"\x80":
        raise InputError("is a pickle that torch.save did not write. Save the model with torch.save(model, path).")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:  # the limit of the format
        return "safetensors"
    for start, message in _FOREIGN:
        if head.startswith(start):
            raise InputError(message)
    # an ONNX file starts with field 1, its small version number, and then another of the first fields
    if path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22:B]", head):
        raise InputError("is an ONNX model. Give the PyTorch model it was exported from.")
    raise InputError(
        "is no PyTorch model. Give a file written by torch.save, safetensors, torch.export.save or torch.jit.save."
    )


def _form_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise InputError(
            "is damaged: a zip archive without its end. It may not have been copied or downloaded to the end."
        ) from error
    if {"archive_format", "models/model.json"} <= names:
        return "exported program"
    if "serialized_exported_program.json" in names:
        raise InputError("was exported by a torch before 2.8. Export it again with the torch installed here.")
    if "data.pkl" in names:
        return "torchscript" if "constants.pkl" in names else "pickle"
    some = ", ".join(sorted(names)[:3])
    raise InputError(f"is a zip archive but no PyTorch model: it holds {some or 'nothing'}. Give the model file.")


def _refusal(error: Refused, arch: str | None) -> str:
    if arch is not None:
        return f"is refused: {error}, whatever else is in the file. No model needs it: do not trust this file."
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


def _damage(form: str, error: Exception) -> str:
    if "Unsupported operand" in str(error):
        return (
            "is pickled with a protocol that cannot be read safely. Save it with torch.save's default protocol, "
            "or, if you trust the file, say so with --trust-pickle."
        )
    if "persistent_load of storage" in str(error):
        return (
            "is a whole model in the format of torch before 1.6, which cannot be read safely. Save its state_dict "
            "and give --arch, or, if you trust the file, say so with --trust-pickle."
        )
    message = re.sub(r"^Weights only load failed.*?error: |\s*Please file an issue.*", "", str(error), flags=re.DOTALL)
    first = (message.strip().splitlines() or [""])[0][:200]
    return f"cannot be read as a {form}: {type(error).__name__}: {first}. The file may be damaged: copy it again."


def _load_program(path: Path, *, trusted: bool) -> ExportedProgram:
    # torch.export.load would log what goes wrong, and then raise something else
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive._package import load_pt2

    if not trusted:
        vet_program(path)
    with path.open("rb") as file:
        program = load_pt2(file).exported_programs["model"]
    program._guards_code = []  # text that module() would execute; it only checks inputs
    for node in program.graph.nodes:
        if _trains(node):
            raise InputError("was exported in training mode. Call model.eval() before torch.export.export.")
    tensors = (*program.state_dict.values(), *program.constants.values())
    if any(isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu" for tensor in tensors):
        program = move_to_device_pass(program, "cpu")
    return program


def _trains(node: torch.fx.Node) -> bool:
    """True for a dropout or norm that behaves as in training."""
    row = row_of(node.target) if node.op == "call_function" else None
    return row is not None and row.training_switch is not None and row.training_switch.is_on(node)


def _load_script(path: Path, *, trusted: bool) -> nn.Module:
    if not trusted:
        vet_script(path)
    model: nn.Module = torch.jit.load(str(path), map_location="cpu")
    if not trusted:
        vet_names(model)
    return model.eval()


def _unpickle_trusted(path: Path, code: Path | None) -> Any:
    """What ``torch.save`` wrote, as Python's own pickle reads it: it runs what the file says."""
    make_importable(Path.cwd())
    main = import_file(code) if code else None

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return _main_class(main, name, code) if module == "__main__" else super().find_class(module, name)

    as_pickle = SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=pickle.load)
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=as_pickle)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"needs a class that is not here: {describe(error)}. Start slim-model in the folder where the model's "
            "code can be imported, or install the package it is from."
        ) from error


def _main_class(main: ModuleType | None, name: str, code: Path | None) -> Any:
    if main is None:
        raise InputError(f"holds {name} from the script that saved it. Name that script: --code path/train.py.")
    found: Any = main
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"holds {name}, which {code} does not define. Give the script that does with --code.")
        found = getattr(found, part)
    return found


def _model_of(found: Checkpoint, arch: str | None) -> tuple[nn.Module, Kind]:
    """The model that a file holds, or the one that ``arch`` names with the weights the file holds."""
    if arch is not None and found.state is not None:
        return build(arch, found.state).eval(), "state dict"
    if arch is None and found.module is not None:
        return found.module.eval(), "module"
    if found.state is None:
        raise InputError(f"holds neither a model nor a state dict but {found.summary}. Save the model in it.")
    name, tensor = next(iter(found.state.items()))
    raise InputError(
        f"holds a state dict ({len(found.state)} tensors, the first {name} of shape {tuple(tensor.shape)}), which "
        f"does not say how they are used. Name the architecture: {_ARCHS}."
    )


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
    held = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if not held:
        return ()
    said = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in held))
    if kind == "exported program":
        raise InputError(f"holds {said} weights. Export it again in float32: torch.export.export(model.float(), ...).")
    model.float()
    return (f"its {said} weights were turned into float32, which the small model is written in",)


def _examples(
    model: nn.Module, program: ExportedProgram | None, specs: list[tuple[tuple[int, ...], torch.dtype]], seed: int
) -> tuple[tuple[torch.Tensor, ...], tuple[str, ...]]:
    """The example inputs, and what was assumed about them."""
    if specs:
        return make_inputs(model, specs, seed), ()
    if program is not None:
        return _carried(program), ()
    inputs = guess_inputs(model, seed)
    shape = spec_of(inputs[0].shape, inputs[0].dtype)
    return inputs, (f"no --input was given; {shape} was tried and works",)


def _carried(program: ExportedProgram) -> tuple[torch.Tensor, ...]:
    args, kwargs = program.example_inputs or ((), {})
    if kwargs or not args or not all(isinstance(arg, torch.Tensor) for arg in args):
        raise InputError(
            "carries no example inputs that are positional tensors. Export it as "
            "torch.export.export(model, (tensor, ...)), or give --input 1x3x224x224 for each."
        )
    return tuple(arg.detach().cpu() for arg in args)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
