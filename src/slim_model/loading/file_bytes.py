"""A file, read once: what is hashed and looked through is what is loaded, whatever happens to the file meanwhile."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import psutil

from slim_model.errors import InputError
from slim_model.loading.limits import FILE_BYTES, INFLATED_BYTES


class TooMuch(Exception):
    """The file asks for more than `limits` allow."""


_NO_FILE = "is {}, no regular file. Copy what it gives to a file, and give that."
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True, slots=True)
class FileBytes:
    """All of the file at ``path``."""

    content: bytes
    sha256: str
    path: Path


def read_file(path: Path, *, limited: bool = True) -> FileBytes:
    """The bytes of a regular file; InputError says why there are none. ``limited``: as `limits` say."""
    try:
        # a pipe without a writer would be waited for
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            about = os.fstat(descriptor)
            _check_kind(about.st_mode)
            _check_size(about.st_size, limited)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise InputError("there is no such file.") from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError(_NO_FILE.format("a socket or a device")) from error
        raise InputError(f"cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # a null byte in the name
        raise InputError(f"cannot be read: {error}.") from error
    except MemoryError as error:
        raise InputError("does not fit into the memory of this machine.") from error
    if not content:
        raise InputError("is empty. It may not have been written or copied to the end.")
    return FileBytes(content, hashlib.sha256(content).hexdigest(), Path(path))


def read_beside(path: Path, name: str, *, limited: bool = True) -> bytes:
    """The bytes of the file ``name`` that the file at ``path`` says lies in its folder, and must: no path leads out of
    it, nor does a link. Raises InputError."""
    folder = path.resolve().parent
    place = (folder / name).resolve() if name and "\0" not in name else folder
    if Path(name).is_absolute() or folder not in place.parents:
        raise InputError(f"keeps weights in {name!r}, which is no file in its own folder. Put it there, by its name.")
    try:
        return read_file(place, limited=limited).content
    except InputError as error:
        raise InputError(f"keeps weights in {name!r}, and {error}") from error


def _check_kind(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise InputError("is a folder. Give the model file in it.")
    if not stat.S_ISREG(mode):
        raise InputError(_NO_FILE.format(_KINDS.get(stat.S_IFMT(mode), "something else")))


def _check_size(size: int, limited: bool) -> None:
    free = psutil.virtual_memory().available
    if size > free or (limited and size > FILE_BYTES):
        raise InputError(f"is {size / 1e9:,.1f} GB; {min(size, free, FILE_BYTES) / 1e9:,.1f} GB can be read here.")


DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError, StopIteration)
"""What reading records of a damaged archive raises; StopIteration: it has no pickle."""


def name_of_pickle(archive: zipfile.ZipFile) -> str:
    """The record in which torch.save puts its pickle. Raises StopIteration where there is none."""
    return next(name for name in archive.namelist() if name.split("/", 1)[-1] == "data.pkl")


def open_zip(content: bytes) -> zipfile.ZipFile:
    """The archive, unless its records are far larger than it: `TooMuch`."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    inflated = sum(record.file_size for record in archive.infolist())
    if inflated > len(content) + INFLATED_BYTES:
        raise TooMuch(f"its records are {inflated:,} bytes in an archive of {len(content):,}")
    return archive
