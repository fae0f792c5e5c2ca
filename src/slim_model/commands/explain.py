"""``slim-model explain``: from the file IN to an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim_model.commands.outputs import check_places
from slim_model.coupling.attention_heads import find_heads
from slim_model.coupling.couple import couple
from slim_model.coupling.explain import Explanation, explain
from slim_model.graph.trace import trace
from slim_model.loading.load import load
from slim_model.progress import Progress
from slim_model.simplifying.simplify import simplify


@dataclass(frozen=True, slots=True)
class Question:
    """The arguments of ``explain``."""

    source: Path
    keep: tuple[str, ...] = ()
    arch: str | None = None
    inputs: tuple[str, ...] = ()
    static_batch: bool = False
    trust_pickle: bool = False
    code: Path | None = None


def answer(question: Question, places: list[Path], progress: Progress) -> Explanation:
    """load -> trace -> simplify -> couple -> explain; ``places`` are where it is to be written."""
    check_places(question.source, places)
    progress(f"reading {question.source.name}")
    subject = load(
        question.source,
        arch=question.arch,
        inputs=question.inputs,
        trust_pickle=question.trust_pickle,
        code=question.code,
    )
    progress("tracing the model")
    traced = trace(subject.model, subject.inputs, static_batch=question.static_batch, program=subject.program)
    progress("finding coupled channels")
    graph = simplify(traced)
    return explain(couple(graph, keep=question.keep, apart=find_heads(graph).width))
