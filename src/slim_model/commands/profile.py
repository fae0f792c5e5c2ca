"""The whole of ``slim-model profile``, from the file IN to a latency table on disk and on the screen."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from slim_model.calling.flat_module import flat_module
from slim_model.cost.latency_model import model_latency
from slim_model.cost.latency_store import check_cache, setting_of
from slim_model.cost.latency_table import LatencyTable, Setting
from slim_model.cost.layer_models import Placed, layers_of
from slim_model.cost.measure_layers import MeasuringJob, measure_layers, ms_of
from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.coupling import Coupling
from slim_model.errors import InputError
from slim_model.export.eager_model import runnable_form
from slim_model.export.to_onnx import to_onnx
from slim_model.folders.as_subject import load_source
from slim_model.graph.graph import Graph
from slim_model.graph.options import TracingOptions
from slim_model.loading.source import Source
from slim_model.measuring.runtimes import Runtime, usable_runtime
from slim_model.measuring.timing import interleave, without_gc
from slim_model.progress import Progress
from slim_model.proof.capture import capture
from slim_model.reporting.latency_table import Learned

DTYPES = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class ProfileJob:
    """The arguments of ``slim-model profile``. Without ``source`` only the width steps are learned."""

    source: Source | None = None
    tracing: TracingOptions = TracingOptions()
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "float32"
    cache: Path | None = None


def learn(job: ProfileJob, progress: Progress) -> Learned:
    """load -> capture -> couple -> survey -> measure the whole."""
    row = usable_runtime(job.runtime)
    if job.dtype not in DTYPES:
        raise InputError(f"--dtype {job.dtype}: it is one of {', '.join(DTYPES)}.")
    if job.source and job.dtype != "float32":
        raise InputError("only single layers are timed in float16; give no IN with it.")
    setting = setting_of(row, threads=job.threads, dtype=job.dtype, batch=job.batch)
    path = check_cache(setting, job.cache)
    if job.source is None:
        return Learned(measure_layers((), MeasuringJob(row, setting, job.cache), progress), path, (), (), None)
    progress(f"reading {job.source.path.name}")
    subject = load_source(job.source.path, job.source.options)
    progress("tracing the model")
    graph = capture(subject.model, subject.arguments, job.tracing, program=subject.program)
    coupling = couple_attention(graph)
    placed = layers_of(coupling, batch=job.batch)
    if not placed:
        raise InputError(f"{job.source.path}: it has no layer that can be timed alone.")
    table = measure_layers(placed, MeasuringJob(row, setting, job.cache), progress)
    progress("timing the whole model")
    whole = _whole(row, setting, subject.model, graph), _predicted(table, coupling)
    return Learned(table, path, tuple(placed), tuple(_name(graph, p) for p in placed), whole)


def _predicted(table: LatencyTable, coupling: Coupling) -> float:
    return model_latency(table, coupling).ms()


def _whole(row: Runtime, setting: Setting, model: nn.Module, graph: Graph) -> float:
    """ms of the dense model, told from the samples as those of a layer are."""
    inputs = [_batched(x, setting.batch) if graph.dynamic_batch else x for x in graph.inputs]
    with tempfile.TemporaryDirectory() as folder:
        artifact: nn.Module | Path = flat_module(model, graph.arguments)
        if row.artifact == "onnx":
            artifact = Path(folder) / "dense.onnx"
            to_onnx(
                runnable_form(graph, model), artifact, opset=None, metadata={}, device=row.device, weights_beside=True
            )
        with without_gc():
            run = row.prepare(artifact, inputs, setting.threads)
            return ms_of(interleave(run, rounds=60, budget_s=10.0)[0])["ms"]


def _batched(x: Tensor, batch: int) -> Tensor:
    return x[:1].expand(batch, *x.shape[1:]).contiguous() if x.dim() else x


def _name(graph: Graph, placed: Placed) -> str:
    """The module that holds the layer's weight, or the node."""
    owners = [graph.owners.get(node.name, "") for node in placed.node.all_input_nodes]
    return next((o.removesuffix(".weight") for o in owners if o.endswith("weight")), placed.node.name)
