"""Files that appear at once and whole: written in a folder beside their place and renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slim_model.errors import InputError

_NAMED = 40  # characters of a name that a temporary folder bears: it says whose it is, and never is too long
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A file to write, of the name of ``target``, that replaces it when the block ends well, else vanishes.

    It lies in a temporary folder beside its place; what else was written there (weights of a large model) is moved,
    too, and first. A link is followed: the file that it names is replaced. Raises InputError for a place that is no
    regular file.
    """
    place = destination(target)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name[:_NAMED]}.", suffix=".part", dir=place.parent))
    except OSError as error:
        raise InputError(f"cannot write to {place.parent}: {error.strerror}. Give another output place.") from error
    try:
        (folder / place.name).touch()
        yield folder / place.name
        destination(target)  # it may have become something else meanwhile
        written = sorted(folder.iterdir(), key=lambda file: file.name == place.name)
        for file in written:
            os.chmod(file, 0o666 & ~_umask())
            os.replace(file, place.with_name(file.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def destination(path: Path) -> Path:
    """The regular file, there or not, that writing to ``path`` replaces; InputError where it is another thing."""
    try:
        place = Path(os.path.realpath(path))
        mode = place.stat().st_mode
    except FileNotFoundError as error:
        if not Path(path).is_absolute() and not _has_working_folder():
            raise InputError(f"cannot write {path}: the working folder was deleted. Change to another.") from error
        return place
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {reason(error)}. Give another name.") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{path} is {kind}, no regular file, and would be replaced by one. Give the name of a file.")
    return place


def reason(error: Exception) -> str:
    """What the system says of a failure: ``No space left on device``."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
