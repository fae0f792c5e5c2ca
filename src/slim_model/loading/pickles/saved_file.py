"""What ``torch.save`` or ``pickle.dump`` wrote -> plain data, tensors, and `Inert` objects; nothing in it runs."""

from __future__ import annotations

from typing import Any

from slim_model.loading.file_bytes import DAMAGED_ZIP, name_of_pickle, open_zip
from slim_model.loading.pickles.data import Stored, Tensors, dtype_of, memory_of, read_stream
from slim_model.loading.pickles.machine import LEGACY_MAGIC, Damaged, run


def read_saved(content: bytes) -> Any:
    """The object in a file, on the CPU. Raises `Damaged` or `TooMuch`."""
    if content.startswith(b"PK"):
        return _read_archive(content)
    tensors = Tensors()
    if LEGACY_MAGIC in content[:64]:
        try:
            return read_stream(content, tensors)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from error
    return run(content, 0, tensors.makers, _no_storage)[0]


def _no_storage(_pid: Any) -> Any:
    raise TypeError("a pickle of Python has no storages")


def _read_archive(content: bytes) -> Any:
    """A zip archive of one pickle and a record for each storage."""
    try:
        with open_zip(content) as archive:
            name = name_of_pickle(archive)
            folder = name.removesuffix("data.pkl")
            names = set(archive.namelist())
            swapped = f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") == b"big"
            stored: dict[str, Stored] = {}

            def storage(pid: Any) -> Stored:
                key, dtype = str(pid[2]), dtype_of(pid[1])
                if key not in stored:
                    memory = memory_of(archive.read(f"{folder}data/{key}"))
                    if swapped:
                        memory.byteswap(dtype)
                    stored[key] = Stored(memory, dtype)
                # Tensors that share a storage share its memory, each with the dtype that its own pickle names.
                return Stored(stored[key].memory, dtype)

            return run(archive.read(name), 0, Tensors().makers, storage)[0]
    except DAMAGED_ZIP as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
