"""Channels, ranks, distillation and int8 in one run: each step can be told apart in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from slim_model.commands.slim import run_job
from slim_model.loading.source import Source, SourceOptions
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from small_nets import Residual, images, trained


def test_one_run_of_all(tmp_path: Path) -> None:
    model = trained(Residual(), seed=3)
    torch.save(model, tmp_path / "in.pt")
    x = images(100)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=model(x).argmax(1).numpy())
    recipe = Recipe.of(
        target="macs=1.8M",
        data=f"npz:{tmp_path / 'data.npz'}",
        multiple_of=1,
        low_rank=True,
        allocate="uniform",
        int8=True,
        int8_anyway=True,
        min_agreement=0.05,
        finetune=1,
        max_drop=0.99,
        bench=False,
    )
    source = Source(tmp_path / "in.pt", SourceOptions(inputs=("2x3x16x16",), trust_pickle=True))
    report = run_job(Job(source, tmp_path / "out.onnx", recipe), lambda stage: None)
    assert report is not None
    names = [step["name"] for step in report.steps]
    assert (names[:2], names[-2:]) == (["dense", "removal"], ["fine-tuning", "int8"])
    assert all(step["accuracy"] is not None for step in report.steps)
    assert report.slim["macs"] <= 1_800_000 < report.dense["macs"]
    assert any("factored" in group for group in report.groups)
    assert any(group["after"] < group["before"] for group in report.groups if "factored" not in group)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert kinds & {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
