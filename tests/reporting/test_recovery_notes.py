"""Recovery that recovers nothing says so, on the screen and in the report."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from slim_model import slim
from slim_model.data.accuracy import Step
from slim_model.reporting.recovery_notes import recovery_notes
from slim_model.reporting.terminal import show
from small_nets import Residual, images, trained


class Upsampler(nn.Module):
    """A transposed convolution reads what the layer before it loses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(6, 16, 1), nn.ConvTranspose1d(16, 16, 2, stride=2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean(2))


def test_layers_that_no_step_changes_are_named() -> None:
    torch.manual_seed(0)
    report = slim(Upsampler(), torch.randn(2, 6, 5), data=[torch.randn(60, 6, 5)], multiple_of=1).report
    (note,) = [note for note in report.warnings if "nothing was done for" in note]
    assert "second.weight" in note
    assert "recover blocks" in note
    assert "head.weight" not in note


def test_where_all_is_done_nothing_is_said() -> None:
    report = slim(trained(Residual()), images(2), ratio=0.2, data=[images(80)], multiple_of=1).report
    assert not [note for note in report.warnings if note.startswith(("recovery:", "after recovery"))]


def test_the_error_is_on_the_screen() -> None:
    report = slim(trained(Residual()), images(2), ratio=0.3, data=[images(80)], multiple_of=1).report
    console = Console(record=True, width=120)
    show(report, console)
    did = report.steps[-1]["did"]
    assert f"error {did['error_before']:.3g} -> {did['error_after']:.3g}, agreement" in console.export_text()


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_no_number_is_cut_on_a_narrow_screen(columns: int) -> None:
    """Not by the table; a place in the source may be."""
    x = images(80)
    data = (x, torch.arange(80) % 5)
    report = slim(trained(Residual()), x[:2], ratio=0.3, data=data, recover="full", multiple_of=1).report
    sample = {"median_ms": 1234.56, "p10_ms": 1111.11, "p90_ms": 2222.22, "batch": 1, "threads": 16}
    row = {"runtime": "onnxruntime-cuda", "dense": sample, "slim": sample}
    row |= {"speedup": 10.25, "speedup_low": 10.11, "speedup_high": 10.39}
    wide = dataclasses.replace(report, latency=[row])
    console = Console(record=True, width=columns)
    show(wide, console, layers=0)
    text = console.export_text()
    assert "…" not in text
    assert all(number in text for number in ("1234.56 ms", "1111.11-2222.22", "10.25x", "10.11-10.39"))


def step(error: float, **did: object) -> Step:
    return Step("affine", did={"error_before": 0.9, "error_after": error, "taken_back": False, "layers": {}} | did)


def test_outputs_that_stay_far_are_said_to_be() -> None:
    assert recovery_notes([step(0.4)], []) == []
    (note,) = recovery_notes([step(1.1)], [])
    assert "differ from the dense model's by 110% of their variance" in note
    assert recovery_notes([step(0.9, taken_back=True)], [])[0].startswith("recovery: affine did not lower the error")
