"""The files a command writes: checked before any work is done, written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from slim_model.atomic_write import beside
from slim_model.errors import InputError


def publish(place: Path, text: str) -> None:
    with beside(place) as temporary:
        temporary.write_text(text)


def check_places(source: Path, places: Iterable[Path]) -> None:
    """Say before any work is done where results could not be written."""
    taken = {source.resolve()}
    for place in places:
        if place.resolve() in taken:
            raise InputError(f"{place} would be written over the same file as IN or another output. Give another name.")
        taken.add(place.resolve())
        if place.is_dir():
            raise InputError(f"{place} is a folder; give the name of a file to write.")
        if not place.parent.is_dir():
            raise InputError(f"cannot write {place}: the folder {place.parent} does not exist. Make it first.")
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise InputError(f"cannot write {place}: {error.strerror}. Give another place.") from error
