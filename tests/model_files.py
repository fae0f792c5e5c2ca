"""Small models, and files made of them, for the tests of loading."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim_model.errors import InputError
from slim_model.loading.load import Subject, load
from slim_model.loading.source import SourceOptions


def small_net(classes: int = 3) -> nn.Sequential:
    """Takes 3x8x8 only: 4*6*6 = 144 numbers reach the last layer."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            bn=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(144, classes),
        )
    ).eval()


INPUT = ["1x3x8x8"]
NET_SOURCE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, classes=3):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(144, classes)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).flatten(1))
"""


def opened(path: str | Path, **options: Any) -> Subject:
    """As the command reads ``path`` with these options."""
    return load(path, SourceOptions(**options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load(path, SourceOptions(**options))
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (3, 144), "fc.bias": (3,)}


def exported(net: nn.Module, path: Path, shape: tuple[int, ...] = (2, 3, 8, 8), **options: Any) -> Path:
    torch.export.save(torch.export.export(net, (torch.randn(shape),), **options), path)
    return path


class Calls:
    """Pickles as a call of ``function``, which happens when it is unpickled."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def code_that_creates(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close()"


def rewrite(path: Path, edits: dict[str, Callable[[bytes], bytes]], **extra: bytes) -> Path:
    """Change the records of an archive; ``edits`` maps a name inside it to what happens to its bytes."""
    with zipfile.ZipFile(path) as archive:
        records = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    for name, edit in edits.items():
        changed = edit(records.get(name, b""))
        assert changed != records.get(name)
        records[name] = changed
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (records | extra).items():
            archive.writestr(f"in/{name}", content)
    return path
