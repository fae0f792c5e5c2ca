"""Recovery that recovers nothing says so, on the screen and in the report."""

from __future__ import annotations

import torch
from rich.console import Console
from torch import Tensor, nn

from slim_model import slim
from slim_model.data.accuracy import Step
from slim_model.reporting.recovery_notes import recovery_notes
from slim_model.reporting.terminal import show
from small_nets import Residual, images, trained


class Tagger(nn.Module):
    """Two recurrent layers: the second reads what the first loses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(6, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0][:, -1])


def test_layers_that_no_step_changes_are_named() -> None:
    torch.manual_seed(0)
    report = slim(Tagger(), torch.randn(2, 5, 6), data=[torch.randn(60, 5, 6)], multiple_of=1).report
    (note,) = [note for note in report.warnings if "nothing was done for" in note]
    assert "second.weight_ih_l0" in note
    assert "--recover blocks" in note
    assert "head.weight" not in note


def test_where_all_is_done_nothing_is_said() -> None:
    report = slim(trained(Residual()), images(2), ratio=0.2, data=[images(80)], multiple_of=1).report
    assert not [note for note in report.warnings if note.startswith(("recovery:", "after recovery"))]


def test_the_error_is_on_the_screen() -> None:
    report = slim(trained(Residual()), images(2), ratio=0.3, data=[images(80)], multiple_of=1).report
    console = Console(record=True, width=120)
    show(report, console)
    did = report.steps[-1]["did"]
    assert f"error {did['error_before']:.3g} -> {did['error_after']:.3g}, same class" in console.export_text()


def step(error: float, **did: object) -> Step:
    return Step("affine", did={"error_before": 0.9, "error_after": error, "taken_back": False, "layers": {}} | did)


def test_outputs_that_stay_far_are_said_to_be() -> None:
    assert recovery_notes([step(0.4)], []) == []
    (note,) = recovery_notes([step(1.1)], [])
    assert "differ from the dense model's by 110% of their variance" in note
    assert recovery_notes([step(0.9, taken_back=True)], [])[0].startswith("recovery: affine did not lower the error")
