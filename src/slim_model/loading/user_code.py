"""The user's own Python files, imported by path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from slim_model.errors import InputError
from slim_model.loading.input_spec import describe_error


def import_file(path: Path) -> ModuleType:
    """The Python file at ``path`` as a module named after the file, so that ``__main__`` guards stay shut.

    Its folder is put on ``sys.path`` as ``python path`` would, and stays there: layers may import later.
    """
    if not path.is_file():
        raise InputError(f"there is no Python file {path}.")
    make_importable(path.parent)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        del sys.modules[name]
        raise InputError(
            f"importing {path} failed with {describe_error(error)}. Put what should not run on import below "
            'if __name__ == "__main__".'
        ) from error
    return module


def make_importable(folder: Path) -> None:
    """Let modules in ``folder`` be imported, as if the program had been started there."""
    try:
        text = str(folder.resolve())
    except OSError:  # the working folder was deleted: nothing lies there
        return
    if text not in sys.path:
        sys.path.insert(0, text)
