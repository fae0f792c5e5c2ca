"""What cannot be used as given is refused before any work, in one message that says what now; OUT does not appear."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from slim_model.commands.slim_folder import run_folder_job
from slim_model.errors import SlimError
from slim_model.progress import say_nothing
from slim_model.recipe_files.job import job_of
from tiny_folders import tiny_folder

Damage = Callable[[Path], object]


def _said(change: Callable[[dict], object]) -> Damage:
    """config.json with a change."""

    def damage(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        change(held)
        (folder / "config.json").write_text(json.dumps(held))

    return damage


def _indexed(change: Callable[[dict], object]) -> Damage:
    """The index of the shards with a change."""

    def damage(folder: Path) -> None:
        place = folder / "model.safetensors.index.json"
        held = json.loads(place.read_text())
        change(held["weight_map"])
        place.write_text(json.dumps(held))

    return damage


def _pickled(held: object) -> Damage:
    """The weights in a .bin file that holds something else."""

    def damage(folder: Path) -> None:
        for file in folder.glob("model*"):
            file.unlink()
        torch.save(held, folder / "pytorch_model.bin")

    return damage


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("it ran",)


def _quantised(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    held = load_file(shard)
    name = next(iter(held))
    save_file(held | {name: torch.zeros(held[name].shape, dtype=torch.int8)}, shard)


def _last(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[-1]


def _another_width(folder: Path) -> None:
    shard = next(f for f in folder.glob("*.safetensors") if "model.layers.0.mlp.up_proj.weight" in load_file(f))
    held = load_file(shard)
    save_file(held | {"model.layers.0.mlp.up_proj.weight": torch.ones(36, 32)}, shard)


def _not_a_number(folder: Path) -> None:
    shard = next(f for f in folder.glob("*.safetensors") if "model.layers.0.mlp.down_proj.weight" in load_file(f))
    held = load_file(shard)
    held["model.layers.0.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(held, shard)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "a folder without config.json"),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "an adapter without its model"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "holds a list"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (_said(lambda c: c.update(model_type="own", auto_map={"AutoModel": "own.Model"})), "code of its own"),
        (_said(lambda c: c.update(model_type="own")), "model_type 'own' is not among those"),
        (_said(lambda c: c.pop("model_type")), "model_type None is not among those"),
        (_said(lambda c: c.update(quantization_config={"quant_method": "gptq"})), "holds gptq weights"),
        (_said(lambda c: c.update(num_key_value_heads=3)), "4 heads of queries do not go into 3 groups"),
        (_said(lambda c: c.update(num_attention_heads="4")), "num_attention_heads is '4', not a whole number"),
        (_said(lambda c: c.update(head_dim=16)), "reads 1 key-value groups, and config.json says 2"),
        (_said(lambda c: c.update(intermediate_size=48)), "reads 40 MLP channels, and config.json says 48"),
        (_said(lambda c: c.update(num_hidden_layers=2)), "has weights of 1 layers, and config.json says 2"),
        (_indexed(lambda m: m.update(x="../../secret.safetensors")), "no .safetensors file in the folder itself"),
        (_indexed(lambda m: m.update(x="/etc/passwd")), "no .safetensors file in the folder itself"),
        (_indexed(lambda m: m.update(x="model-9.safetensors")), "the shard model-9.safetensors is missing"),
        (_indexed(lambda m: m.update(x=next(iter(m.values())))), "lacks x, which"),
        (_indexed(lambda m: m.clear()), "has no weight_map"),
        (lambda f: _last(f).unlink(), "is missing"),
        (lambda f: _last(f).write_bytes(_last(f).read_bytes()[:-9]), "cannot be read"),
        (_pickled({"x": _Evil()}), "cannot be read as pickled weights without running what is in it"),
        (_pickled(torch.nn.Linear(2, 2)), "cannot be read as pickled weights without running what is in it"),
        (_pickled({"step": 3}), "holds no names with tensors"),
        (_pickled({}), "holds no weights"),
        (_pickled({"x": torch.ones(2, dtype=torch.int8)}), "has the type int8"),
        (lambda f: [x.unlink() for x in f.glob("model*")], "holds no model.safetensors and no"),
        (_quantised, "has the type I8"),
        (_another_width, "up_proj.weight has 36 outputs"),
        (_not_a_number, "down_proj.weight holds NaN or infinity"),
    ],
)
def test_a_folder_that_cannot_be_used(damage: Damage, message: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1, shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    damage(folder)
    with pytest.raises(SlimError) as refused:
        run_folder_job(job_of({"ratio": 0.5}, folder, tmp_path / "out"), say_nothing)
    assert message in str(refused.value)
    assert {p.name for p in tmp_path.iterdir()} == {"llama"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True, "data": "text:FILE"}, "--int8 is not there where a folder is written"),
        ({"criterion": "taylor", "data": "text:FILE"}, "criterion 'taylor' is not there for folders"),
        ({"criterion": "power"}, "needs data"),
        ({"recover": "full", "data": "text:FILE"}, "--recover full is not there for folders"),
        ({"recover": "bias", "data": "text:FILE"}, "needs biases"),
        ({"ratio": 0.8}, "would leave none of the 2 key-value groups"),
        ({"ratio": 0.01}, "nothing can go at ratio 0.01"),
        ({"arch": "torchvision:resnet18"}, "a folder says itself what its model"),
        ({"html": Path("r.html")}, "--report alone"),
        ({"data": "mnist:FILE"}, "is no plain text"),
        ({"data": "text:nowhere.txt"}, "there is no file nowhere.txt"),
        ({"data": "text:FILE,length=x"}, "length=x is no number of tokens"),
        ({"data": "text:FILE"}, "the tokenizer of"),
        ({"data": "text:SHORT,tokenizer=bytes"}, "less than two sequences"),
    ],
)
def test_options_that_mean_nothing_for_a_folder(options: dict, message: str, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    (tmp_path / "text").write_text("all work and no play " * 50)
    (tmp_path / "short").write_text("all")
    if "data" in options:
        spec = options["data"].replace("FILE", str(tmp_path / "text")).replace("SHORT", str(tmp_path / "short"))
        options = options | {"data": spec}
    with pytest.raises(SlimError) as refused:
        run_folder_job(job_of({"ratio": 0.5} | options, folder, tmp_path / "out"), say_nothing)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    """Of a BERT without vocab.txt transformers makes a tokenizer that knows no word."""
    folder = tiny_folder("bert", tmp_path, layers=1)
    (tmp_path / "text").write_text("all work and no play " * 200)
    with pytest.raises(SlimError, match=r"the tokenizer of .* cannot be used"):
        run_folder_job(job_of({"data": f"text:{tmp_path / 'text'}"}, folder, tmp_path / "out"), say_nothing)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path, layers=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, message in (("full", "is not empty"), ("file", "is no folder"), ("no/where", "does not exist")):
        with pytest.raises(SlimError, match=message):
            run_folder_job(job_of({"ratio": 0.5}, folder, tmp_path / target), say_nothing)
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
