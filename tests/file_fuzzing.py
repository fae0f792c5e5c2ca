"""file_fuzzing: changed files of every kind that the command reads; each is read by the command, within limits.

A run may end well or refuse the file. It may not end with exit code 1, hang, fill the memory, crash, or do anything
but read: an audit hook sees what Python is asked to do.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from PIL import Image
from torch import nn

import file_mutations as change
from from_onnx.graphs import two_convolutions
from limited_process import in_limits
from model_files import NET_SOURCE, exported, small_net
from slim_model import cli
from slim_model.commands import bench as bench_stages
from slim_model.commands import slim as slim_stages
from slim_model.cost.latency_store import setting_of, table_path
from slim_model.measuring.runtimes import RUNTIMES

LONGEST = 25  # seconds of processor time for one file, all processes together
CODES = (0, 2, 3, 4, 5)  # how the command may end

_INPUT = ("--input", "1x3x8x8")
_ARCH = ("--arch", "net.py:Net", *_INPUT)
_QUICK = ("OUT.onnx", "--no-bench", "--ratio", "0.5", "--multiple-of", "1")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: ``write`` makes a valid one at a path, which ``command`` reads under the name IN. ``inside``:
    changes that know its form. ``whole``: only the whole command reads it; others are mostly explained."""

    suffix: str
    write: Callable[[Path], Any]
    command: tuple[str, ...]
    inside: change.Mutation | None = None
    whole: bool = True


def _scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(small_net()), path)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": {k: v.numpy() for k, v in _state().items()}, "epoch": 3}))


def _state() -> dict[str, torch.Tensor]:
    net = small_net()
    return {f"{name}.{part}": x for name in ("conv", "fc") for part, x in getattr(net, name).state_dict().items()}


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(_state(), path)


def _checkpoint(path: Path) -> None:
    torch.save({"model": _state(), "optimizer": {"state": {0: {"step": 1}}}, "args": Namespace(lr=0.1)}, path)


class Namespace:
    """Of no class that may load."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


def _arrays(path: Path) -> None:
    rows = Random(0)
    x = np.array([[rows.random() for _ in range(192)] for _ in range(12)], np.float32).reshape(12, 3, 8, 8)
    np.savez(path, x_train=x, y_train=np.arange(12) % 3, x_test=x, y_test=np.arange(12) % 3)


def _array(path: Path) -> None:
    np.save(path, np.linspace(0, 1, 8 * 192, dtype=np.float32).reshape(8, 3, 8, 8))


def _table(path: Path) -> None:
    path.write_text("text,label\n" + "".join(f'"row {n}, of eight",{n % 3}\n' for n in range(8)))


def _picture(form: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pixels = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
        Image.fromarray(pixels).save(path, form)

    return write


def _idx(path: Path) -> None:
    """The pictures of MNIST's training part; the other three files are whole."""
    for part, count in (("train", 8), ("t10k", 8)):
        pictures = np.arange(count * 64, dtype=np.uint8).tobytes()
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 8, 8))
        Path(f"{part}-images-idx3-ubyte").write_bytes(head + pictures)
        labels = bytes(n % 3 for n in range(count))
        Path(f"{part}-labels-idx1-ubyte").write_bytes((0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels)
    path.write_bytes(Path("train-images-idx3-ubyte").read_bytes())


def _resumed(path: Path) -> None:
    """What a fine-tuning leaves that was stopped after an epoch."""
    said = io.StringIO()
    with mock.patch("slim_model.training.resume.Resume.remove"), _quiet(said):
        code = cli.run(["net.pt", *_with("--data", "npz:data.npz", "--finetune", "1", "--batch", "4")])
    assert code == 0, said.getvalue()
    shutil.move("OUT.onnx.finetune", path)


def _latencies(path: Path) -> None:
    rows = "".join(
        f'{{"kind": "linear", "count": 1, "fixed": [], "widths": [{n}, 8], "ms": {n / 100}}}\n' for n in range(1, 9)
    )
    path.write_text('{"setting": {}}\n' + rows)


class _Line(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1


def _onnx(path: Path) -> None:
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"])
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 4]) for n in "xy")
    graph = onnx.helper.make_graph([node], "net", [x], [y], [weight])
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)


def _with(*options: str) -> tuple[str, ...]:
    return (*_QUICK, *_ARCH, *options)


def _program(path: Path) -> None:
    exported(small_net(), path, dynamic_shapes=({0: torch.export.Dim.AUTO},))


KINDS: dict[str, Kind] = {
    "module": Kind(".pt", lambda p: torch.save(small_net(), p), ("IN", *_INPUT), change.of_zip, False),
    "state dict": Kind(".pt", lambda p: torch.save(_state(), p), ("IN", *_ARCH), change.of_zip, False),
    "checkpoint": Kind(".pt", _checkpoint, ("IN", *_ARCH), change.of_zip, False),
    "older state dict": Kind(
        ".pt",
        lambda p: torch.save(_state(), p, _use_new_zipfile_serialization=False),
        ("IN", *_ARCH),
        change.of_pickle,
        False,
    ),
    "pickle": Kind(".pkl", _pickled, ("IN", *_ARCH), change.of_pickle, False),
    "safetensors": Kind(".safetensors", _safetensors, ("IN", *_ARCH), change.of_safetensors, False),
    "exported program": Kind(".pt2", _program, ("IN",), change.of_zip, False),
    "torchscript": Kind(".pt", _scripted, ("IN", *_INPUT), change.of_zip, False),
    "npz": Kind(".npz", _arrays, ("net.pt", *_with("--data", "npz:IN")), change.of_zip),
    "npy": Kind(".npy", _array, ("net.pt", *_with("--data", "npz:IN")), change.of_npy),
    "csv": Kind(".csv", _table, ("net.pt", *_with("--data", "csv:IN,tokenizer=net.py:tokens"))),
    "png": Kind("/a/x.png", _picture("png"), ("net.pt", *_with("--data", "imagefolder:IN")), change.of_png),
    "jpeg": Kind("/a/x.jpg", _picture("jpeg"), ("net.pt", *_with("--data", "imagefolder:IN"))),
    "idx": Kind("/train-images-idx3-ubyte", _idx, ("net.pt", *_with("--data", "mnist:IN"))),
    "resume": Kind(
        ".finetune",
        _resumed,
        ("net.pt", *_with("--data", "npz:data.npz", "--finetune", "1", "--batch", "4")),
        change.of_zip,
    ),
    "latency table": Kind(".jsonl", _latencies, ("net.pt", *_QUICK[:-2], *_ARCH), change.of_json),
    "onnx model": Kind(".onnx", lambda p: p.write_bytes(two_convolutions()), ("IN",), None, False),
    "onnx": Kind(".onnx", _onnx, ("bench", "IN", "--rounds", "1", "--seconds", "0.01")),
}
"""What the command reads, one row a kind of file. IN stands for the file, or for the folder that it lies in."""


@dataclass(frozen=True, slots=True)
class Read:
    """How the command ended on the changed file ``number`` of ``kind``: ``answer`` is an exit code, or what was
    wrong."""

    kind: str
    number: int
    answer: str
    said: str

    @property
    def fine(self) -> bool:
        return self.answer in map(str, CODES)


class FileFuzzer:
    """Valid files of all kinds in a folder, and runs of the command on changed ones. ``slimmed``: the share of the
    models that the whole command reads; the others are explained, which is faster."""

    def __init__(self, folder: Path, slimmed: float) -> None:
        self.folder, self.slimmed = folder, slimmed
        self.valid: dict[str, bytes] = {}
        (folder / "net.py").write_text(textwrap.dedent(NET_SOURCE) + textwrap.dedent(_TOKENS))
        with self._inside():
            torch.manual_seed(0)
            torch.save(_state(), "net.pt")
            _arrays(Path("data.npz"))
            for name, kind in KINDS.items():
                place = Path(f"valid{Path(kind.suffix).suffix or kind.suffix}".replace("/", "-"))
                kind.write(place)
                self.valid[name] = place.read_bytes()

    def run_valid(self, kind: str) -> Read:
        """The command on the file as it was written; it also imports what runs in copies of this process need."""
        return self._run(kind, -1, self.valid[kind], self.slimmed > 0, lambda work: work())

    def run(self, kind: str, number: int) -> Read:
        draw = Random(f"{kind} {number}")
        content = change.mutate(self.valid[kind], draw, KINDS[kind].inside)
        return self._run(kind, number, content, draw.random() < self.slimmed, in_limits)

    def _run(
        self, kind: str, number: int, content: bytes, whole: bool, performed: Callable[[Callable[[], str]], str]
    ) -> Read:
        arguments = self._put(kind, content, whole)
        with self._inside():
            answer = performed(lambda: observed(arguments, watched=performed is in_limits))
        code, _, said = answer.partition("\n")
        if (self.folder / "work" / change.MARK).exists():
            code = "RAN"
        return Read(kind, number, code, said.strip())

    def _put(self, kind: str, content: bytes, whole: bool) -> list[str]:
        """Put the file in its place; what is typed to read it."""
        row, work = KINDS[kind], self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name in ("net.py", "net.pt", "data.npz"):
            shutil.copy(self.folder / name, work)
        if kind == "resume":
            (work / "OUT.onnx.finetune").write_bytes(content)
        elif kind == "latency table":
            with self._inside():
                place = table_path(setting_of(RUNTIMES["onnxruntime"]))
            assert place is not None
            place.parent.mkdir(parents=True)
            place.write_bytes(content)
        elif kind == "idx":
            for path in self.folder.glob("*ubyte"):
                (work / "in").mkdir(exist_ok=True)
                shutil.copy(path, work / "in")
        elif kind in ("png", "jpeg"):
            for number in range(8):
                place = work / "in" / "ab"[number % 2] / f"{number}.{kind}"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self.valid[kind])
        place = work / f"in{row.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        name = "in" if "/" in row.suffix else place.name
        arguments = [word.replace("IN", name) for word in row.command]
        if not row.whole:
            arguments = [arguments[0], *_QUICK, *arguments[1:]] if whole else ["explain", *arguments]
        return arguments

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """The runs' folder is the current one and holds the user's caches."""
        work, before = self.folder / "work", Path.cwd()
        work.mkdir(exist_ok=True)
        os.chdir(work if (work / "net.py").exists() else self.folder)
        path, cache = list(sys.path), {"XDG_CACHE_HOME": str(work / "cache"), "COLUMNS": "80"}
        try:
            with mock.patch.dict(os.environ, cache):
                yield
        finally:
            os.chdir(before)
            sys.path[:] = path


_TOKENS = """
    def tokens(texts):
        return torch.tensor([[len(t) + n for n in range(192)] for t in texts]).float().reshape(-1, 3, 8, 8)
"""


def observed(arguments: list[str], *, watched: bool) -> str:
    """The exit code of the command, then what it said; or what it did that reading a file does not need."""
    deeds: list[str] = []
    if watched:
        sys.addaudithook(lambda event, args: _note(event, args, deeds))
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet(said))
        stack.enter_context(mock.patch.object(bench_stages, "measure_memory", side_effect=ValueError("not here")))
        if "net.pt" in arguments:  # the file that is written does not depend on the one that was changed
            stack.enter_context(mock.patch.object(slim_stages, "to_onnx"))
            stack.enter_context(mock.patch.object(slim_stages, "check_onnx", return_value=0.0))
        code = cli.run(arguments)
    spent = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    end = f"DID {deeds[0]}" if deeds else f"TOOK {spent:.0f} s" if watched and spent > LONGEST else str(code)
    return f"{end}\n{said.getvalue()}"


_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect", "socket.bind", "os.link")
_PROGRAMS = ("lscpu", "git", "nvidia-smi", "sysctl", "/bin/sh")
_PLACES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "shutil.rmtree", "open")


def _note(event: str, args: tuple[Any, ...], deeds: list[str]) -> None:
    """Write down what a file may not bring about."""
    if event in _NEVER or (event == "subprocess.Popen" and os.path.basename(str(args[0])) not in _PROGRAMS):
        deeds.append(f"{event} {args[:2]}")
    elif event == "pickle.find_class" and args[0] in ("os", "posix", "builtins", "subprocess", "nt"):
        deeds.append(f"{event} {args}")
    elif event in _PLACES and isinstance(args[0], str | bytes | Path):
        reads = event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        place = os.path.realpath(os.fsdecode(args[0]))
        inside = place.startswith((os.getcwd(), os.path.realpath(tempfile.gettempdir()), "/dev/", "/proc/self/"))
        if not reads and (not inside or os.path.basename(place) == change.MARK):
            deeds.append(f"{event} {place}")


@contextlib.contextmanager
def _quiet(said: io.StringIO | None = None) -> Iterator[None]:
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(said or nowhere):
        yield
