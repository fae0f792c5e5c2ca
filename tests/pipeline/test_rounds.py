"""Rounds of removal and training: they end at the ratio, and count from the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning import EXAMPLE, recipe, same
from slim_model import InputError, restore
from slim_model.export.torch_files import save
from slim_model.pipeline.compile import compile_model
from slim_model.proof.own_module import make_small_module
from slim_model.recipe import Recipe
from slim_model.reporting.report import make_report
from slim_model.training.resume import Resume
from small_nets import Residual, trained


@pytest.mark.parametrize("scope", ["local", "global"])
def test_rounds_end_at_the_ratio(scope: Any) -> None:
    """16 and 24 channels at 0.75 in two rounds: 8 and 12, then 4 and 6. Positions are those of the dense model."""
    model = trained(Residual())
    once, twice = (
        compile_model(model, EXAMPLE, Recipe.of(0.75, scope=scope, multiple_of=1, iterations=k)) for k in (1, 2)
    )
    assert len(twice.passes) == 2
    total = [sum(after for _, after in c.plan.widths) for c in (once, twice.passes[0], twice)]
    assert total[2] == pytest.approx(total[0], abs=1)
    assert total[1] == pytest.approx(2 * total[0], abs=1)
    if scope == "local":
        assert {after for _, after in twice.passes[0].plan.widths} == {8, 12}
        assert {after for _, after in twice.plan.widths} == {4, 6}
    assert twice.slim_cost.macs < twice.passes[0].slim_cost.macs < twice.dense_cost.macs == once.dense_cost.macs
    for (owner, axis), kept in twice.kept_positions().items():
        dense = twice.dense.tensors[owner].detach()
        small = twice.small.tensors[owner]
        assert small.shape[axis] == len(kept)
        for other, positions in twice.kept_positions().items():
            if other[0] == owner:
                dense = dense.index_select(other[1], torch.from_numpy(positions))
        assert torch.equal(dense, small), owner
    for group in make_report(twice, Recipe.of(0.75), module_is_own=True).groups:
        made = next(s for s in group["slices"] if s["role"] == "makes")
        assert group["kept"] == made["kept"]
        assert group["before"] == twice.dense.tensors[made["parameter"]].shape[made["axis"]]
        assert group["after"] == len(group["kept"])


def test_rounds_count_from_the_dense_model() -> None:
    compiled = compile_model(trained(Residual()), EXAMPLE, Recipe.of(0.5, of="params", multiple_of=1, iterations=2))
    assert compiled.met is not None
    assert compiled.met.dense == compiled.dense_cost.params
    assert 0.97 * compiled.met.limit <= compiled.slim_cost.params <= compiled.met.limit
    assert compiled.met.limit == pytest.approx(compiled.dense_cost.params / 2, rel=0.02)


def test_rounds_of_training(tmp_path: Path) -> None:
    """Each round trains, and goes on with what the last one learned; the small model can be restored."""
    model, resume = trained(Residual()), Resume(tmp_path / "OUT.onnx.finetune")
    made = recipe(finetune=1, iterations=2, distill=False)
    compiled = compile_model(model, EXAMPLE, made, resume=resume)
    assert [step.name for step in compiled.steps if step.name in ("removal", "fine-tuning")] == [
        *("removal", "fine-tuning"),
        *("removal", "fine-tuning"),
    ]
    assert len(compiled.passes) == 2
    assert not torch.equal(compiled.passes[1].dense.tensors["fc.bias"], model.fc.bias)  # type: ignore[arg-type, union-attr]
    assert len(list(tmp_path.iterdir())) == 2
    again = compile_model(model, EXAMPLE, made, resume=resume)
    assert same(again.small.tensors, compiled.small.tensors)
    resume.remove(rounds=2)
    assert not list(tmp_path.iterdir())
    small = make_small_module(model, compiled.small)
    save(compiled.small, small, tmp_path / "small.safetensors", compiled.removal(made))
    restored = restore(trained(Residual()), tmp_path / "small.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(restored(*EXAMPLE), compiled.small.run(EXAMPLE)[0], atol=1e-5, rtol=1e-4)


def test_rounds_that_cannot_be() -> None:
    with pytest.raises(InputError, match="iterations 0 is not a number of rounds"):
        Recipe.of(iterations=0)
    with pytest.raises(InputError, match="iterations 2 takes a ratio and the engine slim; engine 'torch-pruning'"):
        Recipe.of(iterations=2, engine="torch-pruning")
    with pytest.raises(InputError, match="target 'macs=1M' takes one round"):
        Recipe.of(iterations=2, target="macs=1M")
