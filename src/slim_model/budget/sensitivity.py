"""What the model loses when one group alone gives up a share of its channels, for every group.

Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, section 3.2: each layer is pruned at several ratios, the
others whole, nothing retrained. The scan is kept in a file as it goes, a group a line, and goes on where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slim_model.budget.methods import Curve
from slim_model.coupling.coupling import Coupling
from slim_model.data.accuracy import classes
from slim_model.data.batches import Batch, Data, pad_batch
from slim_model.data.loss import Loss
from slim_model.errors import InputError
from slim_model.graph.graph import Graph
from slim_model.graph.tensor_trees import batch_of
from slim_model.progress import Progress, say_nothing
from slim_model.ranking.evidence.ablation import losses_of

SHARES = tuple(n / 10 for n in range(1, 10))


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """``curves``: for each group, shares of its channels removed and what is lost at each; ``names`` of the groups.
    ``measure``: ``error``, |y - y'|^2 / |y - mean y|^2 of the outputs, or ``accuracy``, the share of samples that are
    no longer right."""

    names: tuple[str, ...]
    curves: tuple[Curve, ...]
    measure: str


def scan(
    coupling: Coupling,
    scores: list[Tensor],
    data: Data,
    *,
    measure: str = "error",
    path: Path | None = None,
    progress: Progress = say_nothing,
) -> Scan:
    """Scan every group; ``path`` holds what was scanned before, and what is added."""
    if measure == "accuracy" and not data.labelled:
        raise InputError(f"{data.name} has no labels, so a scan cannot read accuracy. Leave out measure=accuracy.")
    mark = _mark(coupling, scores, data, measure)
    curves = _read(path, mark) if path else {}
    judged, loss, scale = _judge(coupling, data, measure)
    names = tuple(group.name for group in coupling.groups)
    for number, (group, score) in enumerate(zip(coupling.groups, scores, strict=True)):
        # The file has it from a scan that was stopped.
        if number in curves:
            continue
        progress(f"scanning layers: {number} of {len(names)} ({group.name})")
        counts = sorted({round(share * group.width) for share in SHARES} - {0, group.width})
        worst_first = torch.sort(score, stable=True).indices
        # Row 0 removes nothing: its loss is what the others are compared with.
        removed = torch.zeros(len(counts) + 1, group.width, dtype=torch.bool)
        for row, count in enumerate(counts, 1):
            removed[row, worst_first[:count]] = True
        losses = (losses_of(coupling, group, judged, loss)(removed) / scale).numpy()
        curves[number] = [0.0, *(count / group.width for count in counts)], [0.0, *(losses[1:] - losses[0])]
        if path:
            _append(path, mark, number, names[number], curves[number])
    ordered = [curves[number] for number in range(len(names))]
    return Scan(names, tuple((np.array(shares), np.array(lost)) for shares, lost in ordered), measure)


def _judge(coupling: Coupling, data: Data, measure: str) -> tuple[Data, Loss, float]:
    """Data whose labels are what outputs are compared with, the loss that compares, and its scale."""
    if measure == "accuracy":
        return data, _wrong, 1.0
    compared = _outputs_of_samples(coupling.graph)

    def squares_of(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
        listed = [outputs] if isinstance(outputs, Tensor) else outputs
        return (_rows(listed, len(labels), compared) - labels).double().square().sum(1)

    def batches() -> Iterator[Batch]:
        for batch in data.batches():
            outputs = coupling.graph.run(pad_batch(batch, coupling.graph).inputs)
            yield dataclasses.replace(batch, labels=_rows(outputs, batch.samples, compared))

    judged = dataclasses.replace(data, batches=batches, labelled=True)
    total, squares, count = torch.zeros(()), 0.0, 0
    for batch in judged.batches():
        assert batch.labels is not None
        total = total + batch.labels.double().sum(0)
        squares += float(batch.labels.double().square().sum())
        count += batch.samples
    spread = squares / count - float((total / count).square().sum())
    return judged, squares_of, max(spread, 1e-12 * squares / count, 1e-300)


def _outputs_of_samples(graph: Graph) -> list[int]:
    """The numbers of the floating outputs that have a row for each sample. InputError where none has."""
    outputs, batch = graph.run(graph.inputs), batch_of(graph.inputs)
    found = [i for i, x in enumerate(outputs) if x.dim() and len(x) == batch and x.is_floating_point()]
    if not found:
        raise InputError(
            "allocate 'sensitivity' compares outputs sample by sample, and no output has a row for each sample. Use "
            "--allocate uniform."
        )
    return found


def _rows(outputs: list[Tensor], samples: int, compared: list[int]) -> Tensor:
    """The ``compared`` outputs of a sample side by side; ``(samples, numbers)``."""
    rows = [outputs[i][:samples] for i in compared]
    return torch.cat([x.flatten(1) if x.dim() > 1 else x[:, None] for x in rows], 1)


def _wrong(outputs: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    answers = classes([outputs] if isinstance(outputs, Tensor) else outputs, labels)
    if answers is None:
        raise InputError("none of the outputs scores classes, so a scan cannot read accuracy.")
    return (answers != labels.flatten()).double()


# -- on disk --------------------------------------------------------------------------------------------------------


def _mark(coupling: Coupling, scores: list[Tensor], data: Data, measure: str) -> str:
    """What a scan holds for: the groups and the order of their channels, the data and the measure."""
    digest = hashlib.sha256(f"{measure} {data.name} {data.samples}".encode())
    for group, score in zip(coupling.groups, scores, strict=True):
        digest.update(f"{group.name} {group.width}".encode() + score.numpy().tobytes())
    return digest.hexdigest()[:16]


def _read(path: Path, mark: str) -> dict[int, tuple[list[float], list[float]]]:
    """A last line that was cut off is scanned again."""
    curves = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("scan") != mark:
            raise InputError(
                f"{path} holds a scan of another model, data or criterion. Give another file, or delete it."
            )
        curves[row["number"]] = row["removed"], row["lost"]
    return curves


def _append(path: Path, mark: str, number: int, name: str, curve: tuple[list[float], list[float]]) -> None:
    row = {"scan": mark, "number": number, "group": name, "removed": curve[0], "lost": [float(x) for x in curve[1]]}
    cut_off = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as file:
        file.write("\n" * cut_off + json.dumps(row) + "\n")
