"""BatchNorm recalibration: running statistics are estimated anew on the small graph's activations.

One BatchNorm after the other, so that each is counted behind those already changed: mean and variance over all samples
and places, as if the data were one batch (the adaptive BatchNorm of Li et al. 2020, without its batches).
"""

from __future__ import annotations

from torch import Tensor, fx

from slim_model.data.holdout import Parts
from slim_model.graph.graph import Graph
from slim_model.graph.nodes import arguments_of
from slim_model.ranking.evidence.seen import Seen
from slim_model.ranking.evidence.statistics import ChannelMoments
from slim_model.recovery.linear_layers import is_norm
from slim_model.recovery.streamed_run import MEMORY, StreamedRun


def recalibrate(small: Graph, fit: Parts, *, memory: int = MEMORY) -> tuple[Graph, int]:
    """The small graph with counted statistics, and of how many BatchNorms; those that share theirs are left."""
    track = StreamedRun(small, fit, memory)
    norms = [node for node in small.nodes if node.op == "call_function" and is_norm(node) and _alone(node, small)]
    for node in norms:
        seen: ChannelMoments | None = None
        name = arguments_of(node)["input"].name
        for stop in track.before(node.name):
            values = stop.values[name].detach()
            here = ChannelMoments.of(
                Seen(values.flatten(2) if values.dim() > 2 else values[..., None], (1, 1), None, None, 0, tuple)
            )
            seen = here if seen is None else seen.merge(here)
        if seen is not None and seen.count > 1:
            track.replace(_statistics(node, track, seen))
    return small.with_tensors(track.tensors), len(norms)


def _statistics(node: fx.Node, track: StreamedRun, seen: ChannelMoments) -> dict[str, Tensor]:
    owners, given = track.graph.owners, arguments_of(node)
    mean, variance = (owners[given[name].name] for name in ("running_mean", "running_var"))
    stored = track.tensors
    return {
        mean: seen.mean.to(stored[mean]),
        variance: (seen.m2 / (seen.count - 1)).to(stored[variance]),  # as PyTorch stores it
    }


def _alone(node: fx.Node, graph: Graph) -> bool:
    return all(
        isinstance(n := arguments_of(node)[name], fx.Node) and n.name in graph.owners and len(n.users) == 1
        for name in ("running_mean", "running_var")
    )
