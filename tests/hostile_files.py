"""Files that were made to hang or to fill the memory: how each is made, opened and refused."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_files import exported, rewrite, small_net


def _attribute(value: Any) -> nn.Module:
    net = small_net()
    net.fc.note = value
    return net


def _doubled(levels: int, pair: Callable[[Any], Any], value: Any) -> Any:
    for _ in range(levels):
        value = pair(value)
    return value


def _pickled(path: Path, text: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("in/data.pkl", text)


def _expanded(path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1).expand(60_000, 50_000)}, path)


def _expanded_layer(path: Path) -> None:
    net = small_net()
    net.fc.weight = nn.Parameter(torch.zeros(1).expand(60_000, 50_000))
    torch.save(net, path)


def _ten_million_squared(path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1).as_strided((10**7, 10**7), (0, 0))}, path)


def _wide_layer(path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].in_features = 10**9
    torch.save(net, path)


def _in_itself(path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    net._modules["again"] = net
    torch.save(net, path)


def _list_in_itself(path: Path) -> None:
    held: list[Any] = [1]
    held.append(held)
    torch.save(_attribute(held), path)


def _with_layer(*layers: nn.Module) -> Callable[[Path], None]:
    """A small model of pictures, whose layers make large ones."""
    return lambda path: torch.save(nn.Sequential(nn.Conv2d(3, 3, 1), *layers, nn.Conv2d(3, 3, 1)), path)


def _bomb(path: Path) -> None:
    _pickled(path, b"\x80\x02" + b"]" * 300_000_000 + b".", zipfile.ZIP_DEFLATED)


def _many_values(path: Path) -> None:
    _pickled(path, b"\x80\x02](" + b"]" * 60_000_000 + b"e.", zipfile.ZIP_DEFLATED)


def _overlapping(path: Path) -> None:
    """An archive whose 3,000 records are the same megabyte."""
    body, names = bytes(1_000_000), [f"in/data/{n}" for n in range(3000)]
    local = b"PK\x03\x04" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, zlib.crc32(body), len(body), len(body), 1, 0) + b"x"
    central = b"".join(
        b"PK\x01\x02"
        + struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 0, zlib.crc32(body), len(body), len(body), len(n), 0, 0, 0, 0, 0, 0)
        + n.encode()
        for n in names
    )
    size = len(local) + len(body)
    ending = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, len(names), len(names), len(central), size, 0)
    path.write_bytes(local + body + central + ending)


def _deep_lists(path: Path) -> None:
    _pickled(path, b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b".")


def _colliding_keys(path: Path) -> None:
    """Numbers of equal hash as keys: each is compared with all before it."""
    step, out = sys.hash_info.modulus, io.BytesIO()
    out.write(b"\x80\x02}(")
    for i in range(1, 60_000):
        text = pickle.encode_long(i * step)
        out.write(b"\x8a" + bytes([len(text)]) + text + b"N")
    out.write(b"u.")
    _pickled(path, out.getvalue())


def _legacy_count(path: Path) -> None:
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    at = content.rindex(struct.pack("<q", 2) + struct.pack("<2f", 1, 1))
    path.write_bytes(content[:at] + struct.pack("<q", 2**40) + content[at + 8 :])


def _many_tensors(path: Path) -> None:
    header = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(1_200_000))
    text = f"{{{header}}}".encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _many_pickled_tensors(path: Path) -> None:
    row = torch.zeros(1)
    torch.save([row.view(1) for _ in range(110_000)], path)


def _edited_program(old: str, new: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        exported(small_net(), path, dynamic_shapes=({0: torch.export.Dim.AUTO},))
        rewrite(path, {"models/model.json": lambda text: text.replace(old.encode(), new.encode(), 1)})

    return make


class _Fills(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.full((64, 64), 1.0).mean()


def _filling_program(path: Path) -> None:
    torch.export.save(torch.export.export(_Fills(), (torch.ones(2, 3),)), path)

    def edit(text: bytes) -> bytes:
        changed = text.replace(b'"as_ints": [64, 64]', b'"as_ints": [200000, 200000]')
        return changed if changed != text else text.replace(b'{"as_int": 64}', b'{"as_int": 200000}')

    rewrite(path, {"models/model.json": edit})


class _Loops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool((x * 0 == 0).all()):
            x = x + 1
        return x


class _LoopsInside(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.while_loop(lambda n, y: n < 3, lambda n, y: (n * 1, y + 1), (torch.tensor(0), x))[1]


def _looping_program(path: Path) -> None:
    torch.export.save(torch.export.export(_LoopsInside(), (torch.ones(2, 3),)), path)


def _calls_that_double(path: Path) -> None:
    """Each method calls the next one twice."""
    method = "    def {}(self, x: torch.Tensor) -> torch.Tensor:\n        return {}\n"
    calls = [method.format(f"f{n}", f"self.f{n - 1}(self.f{n - 1}(x))") for n in range(1, 40)]
    methods = method.format("f0", "x + 1") + "".join(calls) + method.format("forward", "self.f39(x)")
    source = path.with_name("calls.py")
    source.write_text(f"import torch\n\nclass Net(torch.nn.Module):\n{methods}")
    spec = importlib.util.spec_from_file_location("calls_that_double", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["calls_that_double"] = module
    spec.loader.exec_module(module)
    torch.jit.save(torch.jit.script(module.Net()), path)


_SIZE = '"as_expr": {"expr_str": "'
#: How each file is made, how it is opened, and a word of the refusal.
HOSTILE: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "named pipe": (os.mkfifo, {}, "a named pipe"),
    "tuples that double, in a module": (
        lambda path: torch.save(_attribute(_doubled(60, lambda x: (x, x), ())), path), {"inputs": ["1x3x8x8"]},
        "names more than",
    ),
    "a list in itself, in a module": (_list_in_itself, {"inputs": ["1x3x8x8"]}, "a list holds itself"),
    "tuples that double, as a key": (
        lambda path: _pickled(path, b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."), {}, "a key of a dict",
    ),
    "dicts that double": (
        lambda path: torch.save(_doubled(60, lambda x: {"model": x, "net": x}, {}), path), {}, "holds neither",
    ),
    "lists that double": (lambda path: torch.save(_doubled(60, lambda x: [x, x], []), path), {}, "holds neither"),
    "modules that double": (
        lambda path: torch.save(_doubled(60, lambda x: nn.Sequential(x, x), nn.Linear(3, 3)), path), {}, "100,000",
    ),
    "a module in itself": (_in_itself, {}, "holds itself"),
    "an expanded weight": (_expanded, {"arch": "net.py:Net"}, "more numbers than the file stores"),
    "an expanded weight of a layer": (_expanded_layer, {}, "more numbers than the file stores"),
    "sizes of ten million": (_ten_million_squared, {"arch": "net.py:Net"}, "more numbers than the file stores"),
    "a layer that says it is wide": (_wide_layer, {}, "GiB of memory"),
    "a picture 150 times as large": (_with_layer(nn.Upsample(scale_factor=150)), {}, "makes a value of"),
    "a picture of many small ones": (
        _with_layer(nn.Conv2d(3, 3 * 64**2, 1), nn.PixelShuffle(64)), {}, "makes a value of",
    ),
    "a picture with wide margins": (_with_layer(nn.ZeroPad2d(20_000)), {}, "GiB of memory"),
    "a picture of strides": (_with_layer(nn.ConvTranspose2d(3, 3, 2, 400)), {}, "GiB of memory"),
    "a deflated pickle": (_bomb, {}, "records are"),
    "a pickle of too many values": (_many_values, {}, "pickled values"),
    "records on top of each other": (_overlapping, {}, "records are"),
    "lists inside lists": (_deep_lists, {}, ""),
    "keys of equal hash": (_colliding_keys, {}, "takes more than 2 s"),
    "a count of an older format": (_legacy_count, {"arch": "net.py:Net"}, "cut off"),
    "a million empty tensors": (_many_tensors, {"arch": "net.py:Net"}, "names and shapes of"),
    "many views of a tensor": (_many_pickled_tensors, {"arch": "net.py:Net"}, "pickled values"),
    "a size that takes for ever": (
        _edited_program(_SIZE, _SIZE + "9**9**9**9 + "), {}, "is no arithmetic",
    ),
    "a size shifted far": (
        _edited_program(_SIZE, _SIZE + "LShift(1, 10**9) + "), {}, "is no arithmetic",
    ),
    "a program that fills the memory": (_filling_program, {}, "GiB"),
    "a program that loops": (_looping_program, {}, "takes more than 2 s"),
    "TorchScript that loops": (
        lambda path: torch.jit.save(torch.jit.script(_Loops()), path), {"inputs": ["1x3"]}, "takes more than 2 s",
    ),
    "TorchScript whose calls double": (_calls_that_double, {"inputs": ["1x3"]}, "takes more than 2 s"),
}  # fmt: skip
