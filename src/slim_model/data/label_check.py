"""Whether labels can be used as class numbers."""

from __future__ import annotations

from slim_model.data.batches import Data, pad_batch
from slim_model.graph.graph import Graph


def label_fault(data: Data, graph: Graph) -> str | None:
    """Why the labels of ``data`` are no classes of what ``graph`` gives, in words; None where they are.

    The labels of all samples are looked at, the outputs of the first batch alone. Of several outputs, or of outputs
    that have labels of their own shape (a class for each pixel), only what holds for any of them is said.
    """
    scores = None
    for batch in data.batches():
        labels = data.known_labels() if data.known_labels else batch.labels
        if labels is None or not labels.numel():
            return None
        # One run tells the form of the outputs; each batch has labels of its own.
        if scores is None:
            outputs = graph.run(pad_batch(batch, graph).inputs)
            scores = outputs[0] if len(outputs) == 1 else labels.new_empty(())
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            first = labels.flatten()[(labels != labels.round()).flatten()][0]
            return f"a label is {float(first):g}, which is no class number"
        # A class for each pixel.
        dense = scores.dim() > 2 and labels.shape[1:] == scores.shape[2:]
        if scores.dim() and labels.numel() != len(labels) and not dense:
            return f"there are labels of shape {tuple(labels.shape[1:])} a sample"
        classes = max(2, scores.shape[1] if scores.dim() > 1 else 2)
        if scores.dim() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            return (
                f"there are labels from {int(labels.min())} to {int(labels.max())}, and the model has {classes} classes"
            )
        if data.known_labels:  # all of them were looked at
            break
    return None
