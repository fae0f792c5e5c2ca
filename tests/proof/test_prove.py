"""What the numeric proof takes for the same, and what it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from slim_model.coupling.couple import couple
from slim_model.cutting.cut import CutFailed, cut_of
from slim_model.cutting.shrink_graph import shrink
from slim_model.graph.trace import trace
from slim_model.labels.walk import Walk
from slim_model.proof import structure
from slim_model.proof.prove import Proof, prove
from slim_model.simplifying.simplify import simplify


class EagerModel(nn.Module):
    """Steps, sorts and thresholds of values that come in pairs, which only rounding could tell apart."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 256), nn.Linear(16, 256), nn.Linear(512, 4)
        self.second.load_state_dict(self.first.state_dict())
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.decide(torch.cat([self.first(x), self.second(x)], 1)))


DECISIONS = {
    "floor": lambda x: torch.floor(x * 1e5) % 7,
    "threshold": lambda x: (x > x.roll(256, 1)).float(),
    "sort": lambda x: x.cumsum(1).gather(1, x.argsort(1)),
    "topk": lambda x: x.cumsum(1).gather(1, x.topk(512, 1).indices),
}


def proof_of(decide, shift: float) -> Proof:
    """Nothing is removed, and the weights of the other side are off by a factor ``1 + shift``."""
    torch.manual_seed(0)
    graph = simplify(trace(EagerModel(decide).eval(), (torch.randn(4, 16),)))
    coupling = couple(graph)
    keep = coupling.keep_all()
    same, replay = shrink(coupling, keep)
    moved = same.with_tensors({k: v * (1 + shift) if k == "first.weight" else v for k, v in same.tensors.items()})
    return prove(graph, moved, cut_of(coupling, keep), replay, [graph.inputs])


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_that_rounding_turns_is_taken_once(name: str) -> None:
    proof = proof_of(DECISIONS[name], shift=3e-6)
    assert 0 < proof.layer_max_rel_error < 1e-5
    assert not proof.float64


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_on_other_values_is_a_fault(name: str) -> None:
    with pytest.raises(CutFailed):
        proof_of(DECISIONS[name], shift=1e-2)


def test_a_rule_that_fails_without_a_word_on_the_small_graph_is_a_cut_that_failed(monkeypatch) -> None:
    def silent(walk: Walk, **arguments: object) -> None:
        raise AssertionError

    graph = simplify(trace(nn.Linear(4, 4).eval(), (torch.randn(2, 4),)))
    coupling = couple(graph)
    small, replay = shrink(coupling, coupling.keep_all())
    monkeypatch.setattr(structure, "flow_of", lambda node: silent)
    with pytest.raises(CutFailed, match="AssertionError"):
        structure.check_structure(small, replay)
