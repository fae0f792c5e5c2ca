"""Whole layers: those that change least go, and what is left computes what the dense model does without them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from slim_model.cli import run
from slim_model.folders.depth import influences, without_layers
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.families import FAMILIES
from slim_model.folders.running import load_folder, outputs_of
from tiny_folders import TINY, sample_of, tiny, tiny_folder

DEEP = [kind for kind, family in FAMILIES.items() if family.cuts and not any(cut.part for cut in family.cuts)]


@pytest.mark.parametrize("kind", DEEP)
def test_a_model_without_a_layer_is_the_dense_one_that_skips_it(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint_folder(tiny_folder(kind, tmp_path))
    shallow = without_layers(checkpoint, [1])
    tensors = {name: shallow.read(name) for name in shallow.tensors}
    small = load_folder(checkpoint.path, torch.float32, tensors, shallow.config).model
    dense = load_folder(checkpoint.path, torch.float32).model
    before = _outputs(dense)
    last = next(module for name, module in dense.named_modules() if re.search(r"(?<!conv)\.(layers?|h)\.1$", name))
    forward = last.forward

    def passes_on(hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:
        found = forward(hidden, *rest, **named)
        return (hidden, *found[1:]) if isinstance(found, tuple) else hidden

    last.forward = passes_on
    torch.testing.assert_close(_outputs(small), _outputs(dense))
    assert not torch.allclose(_outputs(small), before, rtol=0.01)
    depth = checkpoint.family.depth
    assert (shallow.config[depth], checkpoint.config[depth]) == (1, 2)
    for key in checkpoint.family.per_layer:
        assert len(shallow.config.get(key) or [0]) == 1


@torch.no_grad()
def _outputs(model: Any) -> torch.Tensor:
    return outputs_of(model, sample_of(model))


def test_a_layer_that_adds_nothing_has_no_influence() -> None:
    model = tiny("mistral", 2)
    kept = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    try:
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.zero_()
            model.model.layers[1].self_attn.o_proj.weight.zero_()
        checkpoint = _named_alike(model)
        found = influences(model, checkpoint, sample_of(model)["input_ids"])
    finally:
        model.load_state_dict(kept)
    assert found[1].abs() < 1e-9 < 0.01 < found[0]


def _named_alike(model: Any) -> Any:
    from slim_model.folders.reading.checkpoint import Checkpoint
    from slim_model.folders.reading.shards import Stored

    tensors = {name: Stored("", tuple(x.shape), x.dtype) for name, x in model.state_dict().items()}
    return Checkpoint(Path("here"), model.config.to_dict(), FAMILIES["mistral"], tensors)


def test_depth_and_widths_go_together(tmp_path: Path) -> None:
    folder = tiny_folder("gemma3_text", tmp_path, layers=3, shard="20KB")
    text, report = tmp_path / "text.txt", tmp_path / "r.json"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    data = ("--data", f"text:{text},tokenizer=bytes,length=32", "--samples", "20")
    words = ("--ratio", "0.5", "--depth", "1", "--quiet", "--report", str(report))
    assert run([str(folder), str(tmp_path / "out"), *words, *data]) in (0, None)
    found = json.loads(report.read_text())
    assert found["layers"]["of"] == 3
    assert len(found["layers"]["gone"]) == 1
    assert list(found["perplexity"]) == ["dense", "fewer layers", "cut", "refitted"]
    assert found["proof"]["masked_max_rel_error"] < 1e-5
    small = open_checkpoint_folder(tmp_path / "out")
    assert small.parameters == found["slim"]["params"] < found["dense"]["params"]
    assert (small.config["num_hidden_layers"], len(small.config["layer_types"])) == (2, 2)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("bert", "text:TEXT,tokenizer=bytes,length=32"),
        ("modernbert", "text:TEXT,tokenizer=bytes,length=32"),
        ("vit", "npz:PICTURES"),
    ],
)
def test_layers_of_encoders_go_and_the_rest_is_refitted(kind: str, data: str, tmp_path: Path) -> None:
    """The proof compares with the dense model that calls the other layers alone."""
    folder = tiny_folder(kind, tmp_path, layers=3)
    text, pictures, report = tmp_path / "text.txt", tmp_path / "x.npz", tmp_path / "r.json"
    text.write_text("It was the best of times, it was the worst of times. " * 100)
    np.savez(pictures, x=np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype(np.float32))
    typed = data.replace("TEXT", str(text)).replace("PICTURES", str(pictures))
    words = ("--ratio", "0.5", "--depth", "1", "--quiet", "--report", str(report), "--data", typed, "--samples", "40")
    assert run([str(folder), str(tmp_path / "out"), *words]) in (0, None)
    found = json.loads(report.read_text())
    assert found["layers"]["of"] == 3
    assert len(found["layers"]["gone"]) == 1
    assert kind != "modernbert" or found["layers"]["gone"] != [0]
    assert (found["recover"], found["widths"]["mlp"]) == ("affine", {"kept": 16, "of": 40})
    assert found["proof"]["masked_max_rel_error"] < 1e-5


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", ("--depth", "1"), "add --data text:FILE"),
        ("llama", ("--depth", "2", "--data", "text:TEXT,tokenizer=bytes"), "would leave none of 2 layers"),
        ("clip", ("--depth", "1", "--data", "text:TEXT,tokenizer=bytes"), "has two parts"),
        ("wav2vec2", ("--data", "npz:PICTURES"), "reads no such data"),
        ("vit", ("--data", "text:TEXT,tokenizer=bytes"), "a vit reads no text"),
        ("llama", ("--depth", "-1"), "--depth"),
    ],
)
def test_layers_that_cannot_go(
    kind: str, options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("all work and no play " * 99)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 16, 16), np.float32))
    places = {"TEXT": tmp_path / "text", "PICTURES": tmp_path / "x.npz"}
    typed = [re.sub("TEXT|PICTURES", lambda found: str(places[found[0]]), word) for word in options]
    assert run([str(tiny_folder(kind, tmp_path)), str(tmp_path / "out"), *typed]) in (2, 3)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_layers_go_of_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("llama", tmp_path)
    assert run([str(folder), str(tmp_path / "out.onnx"), "--depth", "1"]) == 2
    assert "--depth takes whole layers where a folder is written" in " ".join(capsys.readouterr().err.split())
    assert set(DEEP) < TINY.keys()
