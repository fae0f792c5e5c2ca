"""``--residual``: hidden channels go, by what the rows claim and the labels find; norms take their statistic over those
that stay, in the folder that is written and in the dense model that it is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from slim_model.calling.arguments import Arguments
from slim_model.cli import run
from slim_model.coupling.attention_heads import couple_attention
from slim_model.errors import InputError, ProofError
from slim_model.folders.plan import Plan, plan_folder
from slim_model.folders.prove import prove_folder
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.families import FAMILIES
from slim_model.folders.refit import rescale
from slim_model.folders.running import load_folder, module_at, outputs_of
from slim_model.folders.slim_folder import slim_folder
from slim_model.folders.write import Kept, write_folder
from slim_model.proof.capture import capture
from slim_model.ranking.evidence.moments import Covariances
from slim_model.recipe import Recipe
from tiny_folders import TINY, sample_of, tiny, tiny_folder

NARROWER = [kind for kind, family in FAMILIES.items() if family.stream]
STAYS = [kind for kind, family in FAMILIES.items() if family.cuts and not family.stream]


@pytest.mark.parametrize("kind", NARROWER)
def test_labels_find_the_hidden_channels_that_the_row_claims(kind: str, tmp_path: Path) -> None:
    plan = plan_folder(open_checkpoint_folder(tiny_folder(kind, tmp_path, layers=1)), 0.5, residual=True)
    graph = capture(tiny(kind, 1), Arguments((), sample_of(tiny(kind, 1)) | {"use_cache": False}))
    groups = couple_attention(graph, loses="heads").groups
    assert plan.hidden
    claimed = {(axis.tensor, axis.axis) for axis in plan.hidden.axes}
    embedding = (plan.hidden.makes[0].tensor, 1)
    group = next(g for g in groups if embedding in {(s.parameter, s.axis) for s in g.slices})
    assert {(s.parameter, s.axis) for s in group.slices} == claimed
    order = next(s.channel for s in group.slices if (s.parameter, s.axis) == embedding)
    assert all(np.array_equal(s.channel, order) for s in group.slices)


@pytest.mark.parametrize("kind", NARROWER)
def test_a_folder_with_fewer_hidden_channels_computes_what_is_kept(kind: str, tmp_path: Path) -> None:
    """Against the user's own model, whose norms are written anew by hand. Which channels stay is seen in the columns of
    the embedding that came out."""
    checkpoint, out = open_checkpoint_folder(tiny_folder(kind, tmp_path)), tmp_path / "out"
    out.mkdir()
    result = slim_folder(checkpoint, out, Recipe.of(ratio=0.5, residual=True, multiple_of=4))
    plan = result.plan
    assert {"hidden", "mlp"} == plan.kept.keys()
    said = open_checkpoint_folder(out)
    assert (said.config["hidden_size"], said.config["head_dim"]) == (plan.kept["hidden"][0], 8)
    assert plan.parameters == said.parameters
    dense = load_folder(checkpoint.path, torch.float32).model
    before = _outputs(dense)
    little = load_folder(out, torch.float32).model
    columns, kept = (model.get_input_embeddings().weight.T for model in (dense, little))
    mask = (columns[:, None] == kept[None]).all(2).any(1)
    assert int(mask.sum()) == len(kept) < len(columns)
    _write_norms_by_hand(dense, plan, mask)
    for site in plan.sites:
        path = f"{site.layer}.{site.cut.reads}"
        wide, small = (module_at(model, path).weight for model in (dense, little))
        stays = (wide[mask].T[:, None] == small.T[None]).all(2).any(1)
        assert int(stays.sum()) == plan.kept["mlp"][0]
        module_at(dense, path).register_forward_pre_hook(lambda _, x, stays=stays: (x[0] * stays,))
    masked = _outputs(dense)
    assert (masked - before).abs().max() > 0.01 * before.abs().max(), "what is gone must show"
    torch.testing.assert_close(_outputs(little), masked, rtol=0, atol=1e-5 * float(masked.abs().max()))


def _write_norms_by_hand(model: Any, plan: Plan, mask: torch.Tensor) -> None:
    """The statistic over the channels of ``mask`` alone; zeros for the others."""
    assert plan.hidden
    for norm in plan.hidden.norms:
        module = module_at(model, norm.weight.removesuffix(".weight"))
        centred = isinstance(module, torch.nn.LayerNorm)

        def by_hand(x: torch.Tensor, module: Any = module, centred: bool = centred) -> torch.Tensor:
            count = int(mask.sum())
            x = (x - (x * mask).sum(-1, keepdim=True) / count) if centred else x
            eps = module.eps if centred else module.variance_epsilon
            size = ((x * mask).square().sum(-1, keepdim=True) / count + eps).sqrt()
            return (x / size * module.weight + (module.bias if centred else 0)) * mask

        module.forward = by_hand


@torch.inference_mode()
def _outputs(model: Any) -> torch.Tensor:
    return outputs_of(model, sample_of(model))


@pytest.mark.parametrize("kind", STAYS)
def test_a_hidden_size_that_must_stay_is_refused(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint_folder(tiny_folder(kind, tmp_path, layers=1))
    why = FAMILIES[kind].fixed or FAMILIES[kind].unsaid
    with pytest.raises(InputError, match=f"--residual: the hidden_size of a {kind} must stay, since {why[:30]}"):
        plan_folder(checkpoint, 0.5, residual=True)


def test_a_model_without_head_gives_its_hidden_channels(tmp_path: Path) -> None:
    tiny("llama").model.save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="LlamaModel has no head"):
        plan_folder(open_checkpoint_folder(tmp_path / "bare"), 0.5, residual=True)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_weights_of_the_layers_lose_the_ratio(kind: str, tmp_path: Path) -> None:
    """Up to the rounding of MLP channels; where the configuration asks for it heads divide hidden_size."""
    checkpoint = open_checkpoint_folder(tiny_folder(kind, tmp_path))
    for ratio in (0.2, 0.35, 0.5, 0.7):
        plan = plan_folder(checkpoint, ratio, 1, residual=True)
        matrices = [name for name, shape in plan.shapes.items() if ".layers." in name and len(shape) == 2]
        left, of = (
            sum(torch.Size(shapes[name]).numel() for name in matrices)
            for shapes in (plan.shapes, {name: list(stored.shape) for name, stored in checkpoint.tensors.items()})
        )
        assert abs(left / of - (1 - ratio)) < 0.02
        assert plan.config["hidden_size"] % (4 if kind == "llama" else 1) == 0


def test_other_hidden_channels_than_were_claimed_are_seen(tmp_path: Path) -> None:
    checkpoint, out = open_checkpoint_folder(tiny_folder("llama", tmp_path)), tmp_path / "out"
    plan = plan_folder(checkpoint, 0.5, residual=True)
    units = {part: torch.arange(plan.kept[part.name][0]) for part in plan.parts}
    wrong = units | {plan.hidden: units[plan.hidden] + 1}  # type: ignore[index]
    out.mkdir()
    write_folder(Kept(plan, wrong), out)
    with pytest.raises(ProofError, match="differs from the masked dense model"):
        prove_folder(Kept(plan, units), out)


@pytest.mark.parametrize(("kind", "tied"), [("mistral", False), ("phi", False), ("llama", True)])
def test_layers_that_read_the_stream_are_refitted(kind: str, tied: bool, tmp_path: Path) -> None:
    """Also the biases of Phi, and the last norm where the head has the weights of the embedding."""
    folder = tiny_folder(kind, tmp_path)
    if tied:
        _tie(folder)
    text = _text(tmp_path)
    data = ("--ratio", "0.4", "--data", f"text:{text},tokenizer=bytes,length=32", "--quiet")
    reports = {level: _run(folder, tmp_path / level, *data, "--recover", level) for level in ("none", "affine")}
    assert list(reports["affine"]["perplexity"]) == ["dense", "cut", "refitted"]
    assert reports["affine"]["perplexity"]["cut"] == pytest.approx(reports["none"]["perplexity"]["cut"])
    x = {"input_ids": torch.tensor(list(text.read_bytes()[:64])).view(2, 32)}
    places = {"dense": folder} | {level: tmp_path / level for level in reports}
    with torch.inference_mode():
        found = {name: outputs_of(load_folder(place, torch.float32).model, x) for name, place in places.items()}
    errors = {level: float((found[level] - found["dense"]).square().mean()) for level in reports}
    assert errors["affine"] < 0.7 * errors["none"]
    last = "model.final_layernorm.weight" if kind == "phi" else "model.norm.weight"
    factor = open_checkpoint_folder(places["affine"]).read(last) / open_checkpoint_folder(places["none"]).read(last)
    assert float(factor.std()) < 1e-6
    assert tied == (abs(float(factor.mean()) - 1) > 1e-3)


def test_hidden_channels_and_whole_layers_go_together(tmp_path: Path) -> None:
    folder = tiny_folder("smollm3", tmp_path, layers=3, dtype=torch.bfloat16, shard="20KB")
    data = ("--data", f"text:{_text(tmp_path)},tokenizer=bytes,length=32", "--samples", "20")
    found = _run(folder, tmp_path / "out", "--ratio", "0.5", "--depth", "1", "--quiet", *data)
    assert list(found["perplexity"]) == ["dense", "fewer layers", "cut", "refitted"]
    assert (len(found["norms"]), found["widths"]["hidden"]["of"], len(found["layers"]["gone"])) == (5, 32, 1)
    small = open_checkpoint_folder(tmp_path / "out")
    assert {stored.dtype for stored in small.tensors.values()} == {torch.bfloat16}
    assert small.parameters == found["slim"]["params"]
    assert "norms take their statistic over the kept" in (tmp_path / "out" / "README.md").read_text()


def _text(place: Path) -> Path:
    (place / "text.txt").write_text("It was the best of times, it was the worst of times. " * 200)
    return place / "text.txt"


def _tie(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(said))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _run(folder: Path, out: Path, *options: str) -> dict[str, Any]:
    report = out.with_suffix(".json")
    assert run([str(folder), str(out), "--residual", "--report", str(report), *options]) in (0, None)
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def test_a_scale_makes_up_for_what_the_head_does_not_read() -> None:
    """z is half of what each input was: d is as much as z, and the factor is 2."""
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    d = torch.zeros(50, 5).double()
    d[:, [0, 2, 3]] = z
    both = torch.cat([d, z], 1)
    centred = both - both.mean(0)
    moments = Covariances(50, (both.mean(0),), (centred.T @ centred,))
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    assert rescale(weight, torch.tensor([0, 2, 3]), moments) == pytest.approx(2)


def test_the_plan_of_a_configuration_counts_a_tied_head_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plans = tiny_folder("qwen3", tmp_path), []
    _tie(folder)
    for source in (folder, folder / "config.json"):
        assert run(["plan", str(source), "--residual", "--json", str(tmp_path / "plan.json")]) == 0
        plans.append(json.loads((tmp_path / "plan.json").read_text()))
        assert "hidden channels: 32 -> 24" in capsys.readouterr().out
    assert plans[0] == plans[1]
    assert plans[0]["dense"]["params"] == sum(p.numel() for p in tiny("qwen3").parameters()) - 256 * 32
    done = _run(folder, tmp_path / "out", "--quiet")
    assert {key: done[key] for key in plans[0]} == plans[0]


def test_biases_behind_a_norm_take_what_went(tmp_path: Path) -> None:
    """Of a Phi of which hidden channels go alone."""
    folder = tiny_folder("phi", tmp_path, layers=1)
    data = ("--data", f"text:{_text(tmp_path)},tokenizer=bytes,length=32", "--samples", "16", "--quiet")
    assert _run(folder, tmp_path / "out", "--recover", "bias", *data)["widths"].keys() == {"hidden"}
    _run(folder, tmp_path / "plain", "--recover", "none", *data)
    out, plain = (open_checkpoint_folder(tmp_path / name) for name in ("out", "plain"))
    changed = {name for name in plain.tensors if not torch.equal(out.read(name), plain.read(name))}
    behind = {f"model.layers.0.{name}.bias" for name in ("mlp.fc1", *(f"self_attn.{x}_proj" for x in "qkv"))}
    assert changed == behind | {"lm_head.bias"}


def test_hidden_channels_are_for_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    assert run([str(folder), str(tmp_path / "out.onnx"), "--residual"]) == 2
    assert "--residual is for folders" in " ".join(capsys.readouterr().err.split())
    assert set(NARROWER) < TINY.keys()
