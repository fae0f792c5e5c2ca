"""learn: the whole of ``slim-model profile``, from the file IN to a latency table on disk and on the screen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from slim_model.artifact import Loading
from slim_model.couple import Coupling, couple
from slim_model.deciding import on_its_own
from slim_model.errors import InputError
from slim_model.export import to_onnx
from slim_model.layers import Placed, layers_of
from slim_model.load import load
from slim_model.measure import interleave, quiet
from slim_model.ops import Layer
from slim_model.profile import LatencyTable, Setting, model_latency, setting_of, table_path
from slim_model.runtimes import Runtime, usable
from slim_model.simplify import simplify
from slim_model.survey import Survey, numbers, survey
from slim_model.trace import Graph, trace

DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class ProfileJob:
    """The arguments of ``slim-model profile``. Without ``source`` only the width steps are learned."""

    source: Path | None = None
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "float32"
    cache: Path | None = None
    loading: Loading = field(default_factory=Loading)


@dataclass(frozen=True, slots=True)
class Learned:
    """``whole``: the dense model measured, and what the table says of it, in ms."""

    table: LatencyTable
    path: Path
    placed: tuple[Placed, ...]
    names: tuple[str, ...]
    whole: tuple[float, float] | None


def learn(job: ProfileJob, progress: Callable[[str], None]) -> Learned:
    """load -> trace -> simplify -> couple -> survey -> measure the whole."""
    row = usable(job.runtime)
    if job.dtype not in DTYPES:
        raise InputError(f"--dtype {job.dtype}: it is one of {', '.join(DTYPES)}.")
    setting = setting_of(row, threads=job.threads, dtype=job.dtype, batch=job.batch)
    path = table_path(setting, job.cache)
    if job.source is None:
        return Learned(survey((), Survey(row, setting, job.cache), progress), path, (), (), None)
    progress(f"reading {job.source.name}")
    loading = job.loading
    subject = load(
        job.source, arch=loading.arch, inputs=loading.inputs, trust_pickle=loading.trust_pickle, code=loading.code
    )
    progress("tracing the model")
    graph = simplify(trace(subject.model, subject.inputs, program=subject.program))
    coupling = couple(graph)
    placed = layers_of(coupling, batch=job.batch)
    if not placed:
        raise InputError(f"{job.source}: it has no layer that can be timed alone.")
    table = survey(placed, Survey(row, setting, job.cache), progress)
    progress("timing the whole model")
    whole = _whole(row, setting, subject.model, graph), _predicted(table, coupling)
    return Learned(table, path, tuple(placed), tuple(_name(graph, p) for p in placed), whole)


def _predicted(table: LatencyTable, coupling: Coupling) -> float:
    return model_latency(table, coupling).ms()


def _whole(row: Runtime, setting: Setting, model: nn.Module, graph: Graph) -> float:
    """ms of the dense model, told from the samples as those of a layer are."""
    dtype: torch.dtype = getattr(torch, setting.dtype)
    if dtype is not torch.float32:
        raise InputError("only single layers are timed in float16; give no IN with it.")
    inputs = [_batched(x, setting.batch) if graph.dynamic_batch else x for x in graph.inputs]
    with tempfile.TemporaryDirectory() as folder:
        held: nn.Module | Path = model
        if row.artifact == "onnx":
            held = Path(folder) / "dense.onnx"
            to_onnx(on_its_own(graph, model), held, opset=None, metadata={}, device=row.device, weights_beside=True)
        with quiet():
            run = row.prepare(held, inputs, setting.threads)
            return numbers(interleave(run, rounds=60, budget_s=10.0)[0])["ms"]


def _batched(x: Tensor, batch: int) -> Tensor:
    return x[:1].expand(batch, *x.shape[1:]).contiguous() if x.dim() else x


def _name(graph: Graph, placed: Placed) -> str:
    """The module that holds the layer's weight, or the node."""
    owners = [graph.owners.get(node.name, "") for node in placed.node.all_input_nodes]
    return next((o.removesuffix(".weight") for o in owners if o.endswith("weight")), placed.node.name)


# -- for people -----------------------------------------------------------------------------------------------------

_PARTS = (1.0, 0.75, 0.5, 0.25)


def show_learned(learned: Learned, console: Console) -> None:
    """The layers at parts of their width, the width steps, and how well the sum of the layers meets the whole."""
    table, setting = learned.table, learned.table.setting
    if learned.placed:
        console.print(Text("ms of each layer with all its widths at a part of the dense ones", style="dim"))
        console.print(_layers(learned))
        console.print()
    for (kind, axis), step in table.steps.items():
        said = f"multiples of {step}" if step > 1 else "none seen"
        dearer = {n: ratio for n, ratio in table.penalties[kind, axis].items() if ratio > 1.1}
        also = "".join(f"; a width that only {n} divides costs {ratio:.1f}x" for n, ratio in sorted(dearer.items()))
        console.print(Text(f"width step, {kind}, {_AXES[kind][axis]}: {said}{also}"))
    if learned.whole:
        measured, predicted = learned.whole
        console.print(Text(f"whole model: {measured:.2f} ms measured, {predicted:.2f} ms as the sum of its layers"))
    console.print(
        Text(
            f"{setting.runtime} {setting.version}, {setting.threads} thread{'s' * (setting.threads > 1)}, batch "
            f"{setting.batch}, {setting.dtype}, {setting.machine}: {len(table.points)} points in {learned.path}",
            style="dim",
        )
    )


_AXES = {
    "conv": ("", "inputs", "outputs"),
    "pointwise": ("", "inputs", "outputs"),
    "depthwise": ("channels",),
    "linear": ("inputs", "outputs"),
}


def _layers(learned: Learned) -> Table:
    """One row for layers that are alike."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("layer (and how many like it)", no_wrap=True, overflow="ellipsis")
    table.add_column("kind")
    for name in ("widths", *(f"{part:.0%}" for part in _PARTS)):
        table.add_column(name, justify="right", no_wrap=True)
    alike: dict[tuple[Layer, tuple[bool, ...]], list[str]] = {}
    for placed, name in zip(learned.placed, learned.names, strict=True):
        alike.setdefault((placed.layer, placed.free), []).append(name)
    for placed in learned.placed:
        names = alike.pop((placed.layer, placed.free), [])
        if not names:
            continue
        more = f" (+{len(names) - 1})" if len(names) > 1 else ""
        widths = " ".join(map(str, placed.layer.widths))
        times = [f"{learned.table.latency_ms(placed, _part(placed, part)):.3f}" for part in _PARTS]
        table.add_row(names[0] + more, placed.layer.kind, widths, *times)
    return table


def _part(placed: Placed, part: float) -> list[int]:
    """The widths that may change at this part of the dense ones."""
    pairs = zip(placed.layer.widths, placed.free, strict=True)
    return [max(1, round(width * part)) if free else width for width, free in pairs]
