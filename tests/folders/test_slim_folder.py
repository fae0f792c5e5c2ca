"""The command on folders: what is written beside the weights, types and shards, and recovery on a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from slim_model.cli import run
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.refit import refit
from slim_model.folders.running import in_float32, load_folder, outputs_of
from slim_model.ranking.evidence.moments import Covariances, Variances
from tiny_folders import sample_of, tiny, tiny_folder, transformers


def _run(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    report = out.with_suffix(".json")
    assert run([str(folder), str(out), "--quiet", "--report", str(report), *options]) in (0, None)
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def test_types_shards_and_what_goes_with_a_model_stay(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path, dtype=torch.bfloat16, shard="20KB")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "own_code.py", "other.bin"):
        (folder / name).write_text("{}")
    (folder / "README.md").write_text("# Mine")
    report = _run(folder, tmp_path / "out", "--ratio", "0.2")
    dense, small = open_checkpoint_folder(folder), open_checkpoint_folder(tmp_path / "out")
    assert report["widths"] == {"mlp": {"kept": 32, "of": 40}}
    assert "key-value groups are kept: 2 cannot lose 20%" in report["notes"][0]
    assert small.shards == dense.shards
    assert {t.dtype for t in small.tensors.values()} == {torch.bfloat16}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * small.parameters == 2 * report["slim"]["params"]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {p.name for p in folder.iterdir()} - {"own_code.py", "other.bin"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("# Mine\n\n## Made smaller")
    assert "MLP channels in each layer: 40 -> 32" in card


@pytest.mark.parametrize("named", [None, ["OwnModel"]])
def test_a_class_that_transformers_has_not_is_its_own_without_head(named: Any, tmp_path: Path) -> None:
    """Code of the folder's own does not run, is not copied, and is not named any more."""
    folder = tiny_folder("bert", tmp_path)
    held = json.loads((folder / "config.json").read_text()) | {
        "architectures": named,
        "auto_map": {"AutoModel": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(held))
    (folder / "own.py").write_text("raise SystemExit('it ran')")
    report = _run(folder, tmp_path / "out", "--ratio", "0.5")
    assert report["source"]["class"] == "BertModel"
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "own.py").exists()
    small = load_file(tmp_path / "out" / "model.safetensors")
    assert small.keys() == load_file(folder / "model.safetensors").keys()


def test_the_language_model_of_a_folder_with_pictures_can_be_taken_alone(tmp_path: Path) -> None:
    """As the refusal says: with its own values."""
    folder, other = tiny_folder("gemma3", tmp_path), tmp_path / "other"
    whole = transformers.Gemma3ForConditionalGeneration.from_pretrained(folder)
    whole.model.language_model.save_pretrained(other)
    assert _run(other, tmp_path / "out", "--ratio", "0.5")["widths"]["mlp"] == {"kept": 16, "of": 40}
    taken, own = load_file(other / "model.safetensors"), tiny("gemma3").model.language_model.state_dict()
    assert all(torch.equal(taken[name], own[name]) for name in own)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_shards_become_safetensors_with_the_same_values(zipped: bool, tmp_path: Path) -> None:
    folder = tiny_folder("gpt2", tmp_path)
    _run(folder, tmp_path / "safe", "--ratio", "0.5")
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(held), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: held[name] for name in part}, folder / shard, _use_new_zipfile_serialization=zipped)
        places |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    _run(folder, tmp_path / "out", "--ratio", "0.5")
    safe, out = (open_checkpoint_folder(tmp_path / name) for name in ("safe", "out"))
    assert out.shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert safe.tensors.keys() == out.tensors.keys()
    assert all(torch.equal(safe.read(name), out.read(name)) for name in safe.tensors)
    assert not list((tmp_path / "out").glob("*.bin*"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_recovery_on_a_text_brings_the_outputs_nearer(kind: str, tmp_path: Path) -> None:
    folder = tiny_folder(kind, tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 200)
    data = ("--ratio", "0.5", "--criterion", "power", "--data", f"text:{text},tokenizer=bytes,length=32")
    reports = {level: _run(folder, tmp_path / level, *data, "--recover", level) for level in ("none", "affine")}
    x = torch.tensor(list(text.read_bytes()[:64])).view(2, 32)
    with torch.inference_mode():
        dense = outputs_of(load_folder(folder, torch.float32).model, {"input_ids": x})
        errors = {
            level: float(
                (outputs_of(load_folder(tmp_path / level, torch.float32).model, {"input_ids": x}) - dense)
                .square()
                .mean()
            )
            for level in reports
        }
    assert errors["affine"] < 0.7 * errors["none"]
    steps = {level: list(report["perplexity"]) for level, report in reports.items()}
    nothing: list[str] = []
    assert steps == (
        {"none": nothing, "affine": nothing}
        if kind == "bert"
        else {"none": ["dense", "cut"], "affine": ["dense", "cut", "refitted"]}
    )
    if kind != "bert":
        assert reports["none"]["perplexity"]["cut"] == pytest.approx(reports["affine"]["perplexity"]["cut"])


def test_a_second_configuration_of_a_part_says_the_same(tmp_path: Path) -> None:
    """Old files of CLIP have ``text_config_dict``, which transformers puts ahead of ``text_config``."""
    folder = tiny_folder("clip", tmp_path)
    held = json.loads((folder / "config.json").read_text())
    held["text_config_dict"] = dict(held["text_config"])
    (folder / "config.json").write_text(json.dumps(held))
    report = _run(folder, tmp_path / "out", "--ratio", "0.5")
    assert report["widths"] == {f"{part} mlp": {"kept": 16, "of": 40} for part in ("text", "vision")}
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["text_config_dict"]["intermediate_size"] == said["text_config"]["intermediate_size"] == 16


@pytest.mark.parametrize("bias", [True, False])
def test_a_refitted_layer_is_the_least_squares_one(bias: bool) -> None:
    """Against a regression of the dense outputs on the kept inputs, made by hand."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw).double() + 0.5
    weight, constant = torch.randn(3, 6, generator=draw).double(), torch.randn(3, generator=draw).double()
    centred, kept = x - x.mean(0), torch.tensor([0, 2, 5])
    moments = Covariances(len(x), (x.mean(0),), (centred.T @ centred,))
    small, shifted = refit(weight, constant if bias else None, kept, moments, slopes=True)
    y = x @ weight.T + (constant if bias else 0)
    columns = torch.cat([x[:, kept], torch.ones(len(x), 1)], 1) if bias else x[:, kept]
    least = (columns @ torch.linalg.lstsq(columns, y).solution - y).square().mean()
    ours = (x[:, kept] @ small.T + (0 if shifted is None else shifted) - y).square().mean()
    assert (
        ours <= 1.001 * least < 0.9 * (x[:, kept] @ weight[:, kept].T + (constant if bias else 0) - y).square().mean()
    )


def test_a_bias_takes_the_mean_of_what_went() -> None:
    """Weights 1, 2, 4 of inputs with means 1, 10, 100; the second goes: 2 times 10 is added to the bias."""
    moments = Variances(5, (torch.tensor([1.0, 10.0, 100.0]),), (torch.ones(3),))
    kept = torch.tensor([0, 2])
    small, bias = refit(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([0.5]), kept, moments, slopes=False)
    assert (small.tolist(), bias.tolist()) == ([[1.0, 4.0]], [20.5])


def test_a_large_model_computes_in_float32_and_keeps_its_type() -> None:
    """Module by module, with weights that embedding and head share, the outputs are those of the whole in float32."""
    model = tiny("gemma", 1).to(torch.bfloat16)
    x = sample_of(model)
    with torch.inference_mode():
        with in_float32(model, whole=0):
            by_module = outputs_of(model, x)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        with in_float32(model):
            torch.testing.assert_close(by_module, outputs_of(model, x))


@pytest.mark.parametrize("kind", ["llama", "bert", "vit", "swin", "convnext", "dinov2"])
def test_a_folder_becomes_an_onnx_file(kind: str, tmp_path: Path) -> None:
    """Through the labels: heads become narrower, too, and the hidden size smaller."""
    folder = tiny_folder(kind, tmp_path, layers=1, dtype=torch.bfloat16)
    report = tmp_path / "r.json"
    words = ("--ratio", "0.5", "--no-bench", "--quiet", "--report", str(report))
    assert run([str(folder), str(tmp_path / "out.onnx"), *words]) in (0, None)
    found = json.loads(report.read_text())
    assert found["proof"]["onnx_max_rel_error"] < 1e-4
    assert found["slim"]["params"] < 0.6 * found["dense"]["params"]
    assert any("turned from bfloat16 into float32" in warning for warning in found["warnings"])
