"""``--finetune`` where a folder is written: the small model learns from the dense one, the best epoch is written, and
the folder that is loaded again is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from slim_model.cli import run
from slim_model.errors import ProofError
from slim_model.folders import finetune
from slim_model.folders.plan import plan_folder
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.running import load_folder, outputs_of
from slim_model.recipe import Recipe
from tiny_folders import sample_of, tiny, tiny_folder

_TEXT = "It was the best of times, it was the worst of times. " * 200


def _slim(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    (folder.parent / "text.txt").write_text(_TEXT)
    data = () if "--data" in options else ("--data", f"text:{folder.parent / 'text.txt'},tokenizer=bytes,length=32")
    words = ("--ratio", "0.5", "--quiet", "--report", str(out.with_suffix(".json")), *data, *options)
    assert run([str(folder), str(out), *words]) in (0, None)
    return json.loads(out.with_suffix(".json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "rate", "options"),
    [
        ("llama", 3e-3, ("--residual",)),
        ("gpt2", 3e-4, ()),
        ("bert", 3e-3, ("--depth", "1")),
        ("vit", 3e-4, ("--data", "npz:PICTURES")),
    ],
)
def test_a_folder_learns_from_the_dense_model(kind: str, rate: float, options: tuple[str, ...], tmp_path: Path) -> None:
    folder = tiny_folder(kind, tmp_path, dtype=torch.bfloat16, shard="20KB")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(64, 3, 16, 16)).astype(np.float32))
    typed = (word.replace("PICTURES", str(tmp_path / "x.npz")) for word in options)
    options = ("--samples", "64", "--recover", "none", *typed)
    report = _slim(folder, tmp_path / "out", "--finetune", "2", "--lr", str(rate), *options)
    plain = _slim(folder, tmp_path / "plain", *options)
    done, steps = report["finetune"], list(report["perplexity"])
    assert done["losses"][done["chosen_epoch"]] == min(done["losses"]) < done["losses"][0]
    assert len(done["losses"]) == 3
    parts = (done["trained_on"], done["validated_on"], done["batch"], done["lr"])
    assert parts == ((46, 6, 5, rate) if kind == "vit" else (56, 8, 7, rate))
    assert report["proof"]["trained_max_rel_error"] < 1e-5
    assert steps == ([*plain["perplexity"], "trained"] if kind in ("llama", "gpt2") else [])
    small, before = (open_checkpoint_folder(tmp_path / name) for name in ("out", "plain"))
    assert (small.tensors, small.config) == (before.tensors, before.config)
    assert {stored.dtype for stored in small.tensors.values()} == {torch.bfloat16}
    weights = [name for name, stored in small.tensors.items() if len(stored.shape) > 1]
    assert not any(torch.equal(small.read(name), before.read(name)) for name in weights if "embed" not in name)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "it learned from the dense model" in card
    assert "It was not trained afterwards" in (tmp_path / "plain" / "README.md").read_text()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "plain").iterdir()}


def test_what_is_learned_is_what_the_dense_model_says(tmp_path: Path) -> None:
    """Outputs on the text come nearer to the dense ones than without training."""
    folder = tiny_folder("llama", tmp_path)
    _slim(folder, tmp_path / "plain", "--recover", "none")
    _slim(folder, tmp_path / "out", "--recover", "none", "--finetune", "4", "--lr", "0.005")
    x = {"input_ids": torch.tensor(list(_TEXT.encode()[:64])).view(2, 32)}
    with torch.inference_mode():
        places = (folder, tmp_path / "plain", tmp_path / "out")
        dense, plain, out = (outputs_of(load_folder(p, torch.float32).model, x).softmax(-1) for p in places)
    assert (out - dense).abs().mean() < 0.8 * (plain - dense).abs().mean()


def test_values_that_are_no_better_are_not_written(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path)
    report = _slim(folder, tmp_path / "out", "--samples", "64", "--finetune", "1", "--lr", "3")
    _slim(folder, tmp_path / "plain", "--samples", "64")
    assert report["finetune"]["chosen_epoch"] == 0
    out, plain = (open_checkpoint_folder(tmp_path / name) for name in ("out", "plain"))
    assert all(torch.equal(out.read(name), plain.read(name)) for name in plain.tensors)
    assert report["perplexity"]["trained"] == pytest.approx(report["perplexity"]["refitted"])


def test_a_folder_that_is_not_what_was_trained_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    plan = plan_folder(open_checkpoint_folder(folder), 0.5)
    monkeypatch.setattr(finetune, "_write_values", lambda model, place: None)
    x = sample_of(tiny("llama", 1))["input_ids"].repeat(8, 1)
    twin = tiny_folder("llama", tmp_path / "twin", layers=1)
    place = open_checkpoint_folder(twin)
    other = load_folder(twin, torch.float32).model
    with torch.no_grad():
        other.lm_head.weight.add_(0.3 * torch.randn(other.lm_head.weight.shape))
    other.save_pretrained(place.path)
    recipe = Recipe.of(ratio=0.5, data="text:FILE", finetune=1)
    with pytest.raises(ProofError, match="differs from the model that was trained"):
        finetune.finetune_folder(plan, place.path, x, recipe, lambda text: None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--finetune", "1", "--lr", "1e30"), "fine-tuning diverged: the loss is no number"),
        (("--finetune", "1", "--alpha", "0"), "--alpha is not there where a folder is written"),
        (("--finetune", "1", "--no-distill"), "--distill is not there where a folder is written"),
        (("--finetune", "1", "--augment", "none"), "--augment is not there where a folder is written"),
        (("--finetune", "1", "--samples", "1"), "--finetune needs two samples"),
    ],
)
def test_training_that_cannot_be(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    (tmp_path / "text.txt").write_text(_TEXT)
    data = ("--data", f"text:{tmp_path / 'text.txt'},tokenizer=bytes,length=32")
    assert run([str(folder), str(tmp_path / "out"), "--ratio", "0.5", *data, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert {p.name for p in tmp_path.iterdir()} == {"llama", "text.txt"}


def test_a_model_that_gives_no_logits_teaches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("bert", 1).bert.save_pretrained(tmp_path / "bare")
    (tmp_path / "text.txt").write_text(_TEXT)
    data = ("--data", f"text:{tmp_path / 'text.txt'},tokenizer=bytes,length=32")
    assert run([str(tmp_path / "bare"), str(tmp_path / "out"), "--finetune", "1", *data]) == 2
    assert "a BertModel gives none" in " ".join(capsys.readouterr().err.split())


def test_memory_is_asked_for_ahead_of_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    (tmp_path / "text.txt").write_text(_TEXT)
    data = ("--data", f"text:{tmp_path / 'text.txt'},tokenizer=bytes,length=32")
    monkeypatch.setattr(finetune, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=10_000)))
    assert run([str(folder), str(tmp_path / "out"), "--finetune", "1", *data]) == 2
    assert "--finetune needs about 0.0 GB for the small model" in " ".join(capsys.readouterr().err.split())
    assert run([str(folder), str(tmp_path / "out"), "--quiet", *data]) in (0, None)
