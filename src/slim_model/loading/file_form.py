"""What a file is, from its content."""

from __future__ import annotations

import contextlib
import re
import zipfile
from pathlib import Path
from typing import Literal

from slim_model.errors import InputError
from slim_model.loading.file_bytes import DAMAGED_ZIP, FileBytes, TooMuch, name_of_pickle, open_zip, read_file
from slim_model.loading.limits import HEADER_BYTES
from slim_model.loading.pickles.machine import LEGACY_MAGIC, Damaged, Inert, run

Form = Literal["exported program", "torchscript", "safetensors", "pickle", "onnx"]

WITH_ARTICLE: dict[Form, str] = {
    "exported program": "an exported program",
    "torchscript": "a TorchScript archive",
    "safetensors": "a safetensors file",
    "pickle": "a pickle",
    "onnx": "an ONNX model",
}
_FOREIGN = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself. Fetch it: git lfs pull."),
    (b"\x89HDF", "is an HDF5 (Keras) file. Give the PyTorch model."),
    (b"\x1f\x8b", "is a gzip archive. Unpack it and give the model inside."),
    (b"<", "is an HTML or XML page, perhaps of a download that failed. Give the model file."),
    (b"{", "is a JSON file, perhaps the index of a model in parts. Give the model file, or a part of it."),
)


_AT_ONCE = 10_000_000  # bytes that are read twice without anybody's noticing


_FEW = 50_000  # instructions of a pickle, some 2,500 tensors: looked through without anybody's noticing


def first_look(path: Path, *, trusted: bool = False) -> None:
    """Raise InputError where ``path`` is no file, one that holds no PyTorch model, or a damaged pickle: before PyTorch
    is imported, which takes seconds. Whoever loads the file reads it anew, and says what is wrong with it besides; a
    folder may be one of transformers, which is told by who opens it."""
    try:
        if path.is_dir() or (path.is_file() and path.stat().st_size > _AT_ONCE):
            return
        with contextlib.suppress(TooMuch):
            file = read_file(path)
            if form_of(file) == "pickle" and not trusted:
                _look_through(file.content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _look_through(content: bytes) -> None:
    """Raise InputError where a pickle is cut, or has what no pickle has; nothing that it names is made."""
    try:
        if content.startswith(b"PK"):
            with open_zip(content) as archive:
                content = archive.read(name_of_pickle(archive))
        elif content[2:15].startswith(LEGACY_MAGIC):
            return  # several pickles, one behind the other
        run(content, 0, {}, lambda pid: Inert("a storage"), _FEW)
    except Damaged as error:
        if not str(error).startswith("TypeError"):  # what was not made may be what would have fit
            raise InputError(damage("pickle", error)) from error
    except DAMAGED_ZIP:
        return  # whoever reads the tensors, too, says what it is


def damage(form: Form, error: Exception) -> str:
    """What is wrong with a file that is damaged."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    kind = "" if isinstance(error, Damaged) else f"{type(error).__name__}: "
    return f"cannot be read as {WITH_ARTICLE[form]}: {kind}{first}. The file may be damaged: copy it again."


def form_of(file: FileBytes) -> Form:
    """What ``file`` is; InputError says what else it is."""
    head = file.content[:64]
    if head.startswith(b"PK"):
        return _form_of_zip(file.content)
    if head[:1] == b"\x80":
        return "pickle"
    if head[8:9] == b"{" and (size := int.from_bytes(head[:8], "little")) < 100_000_000:  # the limit of the format
        if size > HEADER_BYTES:
            raise InputError(f"holds names and shapes of {size / 1e6:.0f} MB; {HEADER_BYTES / 1e6:.0f} MB can be read.")
        return "safetensors"
    for start, message in _FOREIGN:
        if head.startswith(start):
            raise InputError(message)
    # an ONNX file starts with field 1, its small version number, and then another of the first fields
    if file.path.suffix == ".onnx" or re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22:B]", head):
        return "onnx"
    raise InputError(
        "is no PyTorch model and no ONNX file. Give a file written by torch.save, safetensors, torch.export.save or "
        "torch.jit.save, or an ONNX file."
    )


def _form_of_zip(content: bytes) -> Form:
    try:
        with open_zip(content) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
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


def names_in_code(content: bytes, name: str) -> bool:
    """Whether the code of a TorchScript archive, which is compressed, names ``name``; False where it is no archive."""
    if not content.startswith(b"PK") or b".py" not in content:
        return False
    try:
        with open_zip(content) as archive:
            return any(name.encode() in archive.read(part) for part in archive.namelist() if part.endswith(".py"))
    except Exception:  # damaged files fail in many ways, which whoever loads them says
        return False
