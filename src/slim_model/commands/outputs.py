"""The files a command writes: checked before any work is done, written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from slim_model.atomic_write import beside, destination, reason
from slim_model.errors import InputError


def publish(place: Path, text: str) -> None:
    """Write a text file whole, or raise InputError and leave what was there."""
    try:
        with beside(place) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {place}: {reason(error)}. Free space or give another place.") from error


def check_output_paths(source: Path, places: Iterable[Path]) -> None:
    """Say before any work is done where results could not be written."""
    taken = {followed(source)}
    for place in places:
        target = destination(place)
        if target in taken:
            raise InputError(f"{place} would be written over the same file as IN or another output. Give another name.")
        taken.add(target)
        if not target.parent.is_dir():
            raise InputError(f"cannot write {place}: the folder {place.parent} does not exist. Make it first.")
        try:
            target.name.encode("utf-8")  # onnxruntime and ONNX take no other names
            with tempfile.TemporaryDirectory(prefix=".slim-model-", suffix=".part", dir=target.parent) as folder:
                (Path(folder) / target.name).touch()  # a name may be too long, or have characters that are not allowed
        except UnicodeEncodeError:
            raise InputError(f"cannot write {place}: its name is not UTF-8. Give another name.") from None
        except OSError as error:
            raise InputError(f"cannot write {place}: {reason(error)}. Give another place.") from error


def keep_apart(read: Iterable[Path], places: Iterable[Path]) -> None:
    """Raise InputError where one of ``places`` would be written over a file that is ``read``: a recipe, code, data."""
    files = {followed(file): file for file in read}
    for place in places:
        if (target := followed(place)) and target in files:
            raise InputError(f"{place} would be written over {files[target]}, which is read. Give another name.")


def ensure_temporary_folder(other: Path) -> None:
    """Where the system has no folder for temporary files that can be written, ``other`` is taken for them."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(other)


def followed(source: Path) -> Path | None:
    """The file that ``source`` names; None where links lead in a circle, or no file can be called so: reading it will
    say that."""
    try:
        return source.resolve()
    except (OSError, RuntimeError, ValueError):
        return None
