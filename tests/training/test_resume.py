"""Fine-tuning goes on where it was stopped, as the same run alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetuning import EXAMPLE, same, tuned
from slim_model import InputError
from slim_model.pipeline.compile import compile_model
from slim_model.pipeline.compiled import Compiled
from slim_model.recipe import Recipe
from slim_model.training.resume import Resume
from small_nets import Residual, trained


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_ends_as_an_uninterrupted_one(removed: Compiled, tmp_path: Path, optimizer: str) -> None:
    resume = Resume(tmp_path / "OUT.onnx.finetune")
    options = {"finetune": 3, "optimizer": optimizer, "lr": 0.005}
    whole = tuned(removed, **options)

    def stop(text: str) -> None:
        if text.startswith("fine-tuning: epoch 2 of 3, loss"):
            raise Stopped

    with pytest.raises(Stopped):
        tuned(removed, **options, resume=resume, progress=stop)
    said: list[str] = []
    again = tuned(removed, **options, resume=resume, progress=said.append)
    assert {text.split(",")[0] for text in said} == {"fine-tuning: epoch 3 of 3"}
    assert same(again.graph.tensors, whole.graph.tensors)
    assert [e.loss for e in again.epochs] == [e.loss for e in whole.epochs]
    assert again.chosen == whole.chosen
    resume.remove(rounds=1)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_only_as_the_same_run(removed: Compiled, tmp_path: Path) -> None:
    resume = Resume(tmp_path / "OUT.onnx.finetune")
    tuned(removed, finetune=1, resume=resume)
    with pytest.raises(InputError, match=r"OUT.onnx.finetune was left by another run: lr was 0.02, and is 0.03"):
        tuned(removed, finetune=1, lr=0.03, resume=resume)
    other = compile_model(trained(Residual(), seed=1), EXAMPLE, Recipe.of(0.5, multiple_of=1))
    with pytest.raises(InputError, match="left by another run: the weights differ"):
        tuned(other, finetune=1, resume=resume)
    resume.place.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="is not a checkpoint of fine-tuning"):
        tuned(removed, finetune=1, resume=resume)
