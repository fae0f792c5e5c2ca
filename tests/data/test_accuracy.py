"""Accuracy of graphs and of anything else that scores classes, and the steps in the report."""

from __future__ import annotations

import copy

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from slim_model import InputError
from slim_model.data.accuracy import Exam, accuracy, classes
from slim_model.data.open_data import open_data
from slim_model.graph.trace import trace
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe
from slim_model.reporting.report import make_report
from slim_model.reporting.terminal import show
from small_nets import Residual, images, trained

LABELS = torch.arange(40) % 5


def test_a_graph_and_the_module_it_came_from_are_equally_good() -> None:
    model, x = trained(Residual()), images(40)
    with torch.no_grad():
        expected = float((model(x).argmax(1) == LABELS).float().mean())
    for batch in (7, 40):
        batches = list(zip(x.split(batch), LABELS.split(batch), strict=True))
        data = open_data(batches, (x[:2],))
        graph = trace(model, (x[:2],))
        assert accuracy(graph, data) == accuracy(model, data) == pytest.approx(expected)
    fixed = trace(model, (x[:7],), static_batch=True)  # its last batch is filled up
    assert accuracy(fixed, open_data([(x, LABELS)], fixed.inputs, fixed_batch=True)) == pytest.approx(expected)


def test_the_winning_class() -> None:
    labels = torch.tensor([1, 0])
    for scores in (torch.tensor([[0.1, 0.9], [2.0, 1.0]]), torch.tensor([[0.3], [-3.0]]), torch.tensor([0.3, -3.0])):
        assert torch.equal(classes([torch.zeros(2, 3, 4), scores], labels), labels)  # type: ignore[arg-type]
    assert classes([torch.zeros(2, 3, 4)], labels) is None
    assert classes([torch.zeros(2, 3)], torch.zeros(2, 3)) is None


def test_what_has_no_accuracy_says_so() -> None:
    model, x = trained(Residual()), images(8)
    with pytest.raises(InputError, match="no labels"):
        accuracy(model, open_data([x], (x,)))
    with pytest.raises(InputError, match=r"none of the outputs \[\(8, 3, 16, 16\)\] scores classes"):
        accuracy(nn.Identity(), open_data([(x, LABELS[:8])], (x,)))


def test_steps_are_in_the_report() -> None:
    """Labels as the dense model sees them: it is right on all of the test part."""
    model, x = trained(Residual()), images(60)
    with torch.no_grad():
        labels = model(x).argmax(1)
    recipe = Recipe.of(0.5, data=(x, labels), multiple_of=1, batch=16)
    compiled = compile_model(copy.deepcopy(model), (x[:2],), recipe)
    dense, removal = compiled.steps[:2]
    assert (dense.name, dense.accuracy, removal.name) == ("dense", 1.0, "removal")
    report = make_report(compiled, recipe, module_is_own=True)
    assert [s["accuracy"] for s in report.as_dict()["steps"]][:2] == [1.0, removal.accuracy]
    console = Console(record=True, width=100)
    show(report, console)
    said = console.export_text()
    assert all(part in said for part in ("accuracy: dense", "100.00%", "accuracy: removal", f"{removal.accuracy:.2%}"))


@pytest.mark.parametrize("source", [images(20), [images(20)], [(images(20), torch.zeros(20).long())]])
def test_without_labels_or_a_test_part_nothing_is_read(source: Tensor) -> None:
    compiled = compile_model(trained(Residual()), (images(2),), Recipe.of(0.5, data=source, multiple_of=1))
    assert [step.accuracy for step in compiled.steps[:2]] == [None, None]


def test_a_model_without_classes_has_no_accuracy() -> None:
    graph = trace(nn.Conv2d(3, 2, 1), (images(2),))
    data = open_data((images(10), torch.zeros(10).long()), graph.inputs)
    assert Exam.of(graph, data).step("dense", graph).accuracy is None
