"""Files that appear at once and whole: written beside their place and renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slim_model.errors import InputError


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A temporary file in the folder of ``target`` that replaces it when the block ends well, else vanishes."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}. Give another output place.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def final_name(path: Path) -> str:
    """What a file from ``beside`` will be called in the end."""
    return path.name[1:].rsplit(".", 2)[0] if path.suffix == ".part" else path.name


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
