"""What recovery reports of outputs that tell boxes."""

from __future__ import annotations

import torch
from torch import nn

from slim_model.calling.boxes import BoxForm
from slim_model.pipeline.compile import compile_model
from slim_model.recipe import Recipe


def test_boxes_that_agree_are_counted() -> None:
    """The only way in: the form goes with the graph. A net of 12 places, four of a box and two classes each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 6)).eval()
    with torch.no_grad():
        model[2].bias[2:] = torch.tensor([1.0, 1.0, 0.5, 0.5])  # boxes of about 1 x 1, of which all are told
    x = torch.randn(200, 12, 3)
    recipe = Recipe.of(ratio=0.5, recover="affine", data=x)
    compiled = compile_model(model, (x[:2],), recipe, boxes=BoxForm(2, by_place=True))
    (step,) = (step for step in compiled.steps if step.name == "affine")
    before, after = step.did["agreement_before"], step.did["agreement_after"]
    assert 0 < before < after <= 1
    plain = compile_model(model, (x[:2],), recipe)
    assert all(step.did.get("agreement_after") is None for step in plain.steps)
