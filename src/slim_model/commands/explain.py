"""``slim-model explain``: from the file IN to an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim_model.commands.outputs import check_output_paths
from slim_model.coupling.attention_heads import couple_attention
from slim_model.coupling.explain import Explanation, explain
from slim_model.folders.as_subject import load_source
from slim_model.graph.options import TracingOptions
from slim_model.loading.source import Source
from slim_model.progress import Progress
from slim_model.proof.capture import capture


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be explained, as if layers that match ``keep`` were left alone."""

    source: Source
    keep: tuple[str, ...] = ()
    tracing: TracingOptions = TracingOptions()


def answer(question: Question, places: list[Path], progress: Progress) -> Explanation:
    """load -> capture -> couple -> explain; ``places`` are where it is to be written."""
    source = question.source
    check_output_paths(source.path, places)
    progress(f"reading {source.path.name}")
    subject = load_source(source.path, source.options)
    progress("tracing the model")
    graph = capture(subject.model, subject.arguments, question.tracing, program=subject.program)
    progress("finding coupled channels")
    return explain(couple_attention(graph, keep=question.keep))
