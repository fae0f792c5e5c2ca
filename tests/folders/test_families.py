"""Each row of the table, on a small model of its kind: what it claims is what the labels find, and a folder that goes
in comes out smaller, loads, and computes what the dense model does on what is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from slim_model.calling.arguments import Arguments
from slim_model.coupling.attention_heads import couple_attention
from slim_model.errors import InputError, ProofError
from slim_model.folders.meta import plan_of_config
from slim_model.folders.plan import plan_folder
from slim_model.folders.prove import prove_folder
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.families import FAMILIES
from slim_model.folders.running import load_folder, outputs_of
from slim_model.folders.slim_folder import slim_folder
from slim_model.folders.write import Kept, write_folder
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from tiny_folders import TINY, sample_of, tiny, tiny_folder

DIFFERENT = list({family: kind for kind, family in FAMILIES.items() if family.cuts}.values())
"""One kind for each row that says something of its own."""


def test_every_row_has_a_small_model() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", DIFFERENT)
def test_labels_find_what_the_row_claims(kind: str, tmp_path: Path) -> None:
    """Positions that the row takes out together are one channel by the labels of a traced model, and no others are."""
    model = tiny(kind, 1)
    plan = plan_folder(open_checkpoint_folder(tiny_folder(kind, tmp_path, layers=1)), 0.5)
    inputs = sample_of(model) | ({"use_cache": False} if _predicts_words(model) else {})
    graph = capture(model, Arguments((), inputs))
    groups = couple_attention(graph, loses="heads").groups
    for site in plan.sites:
        claimed = {}
        for axis in site.axes:
            name = axis.tensor if kind not in ("vit", "deit") else _own_name(axis.tensor, site.cut.reads)
            units = torch.arange(site.units)[:, None]
            claimed[name, axis.axis] = [axis.positions(unit, site.units).tolist() for unit in units]
        key = next(key for key in claimed if key[0].endswith(f"{site.cut.module or site.cut.reads}.weight"))
        group = next(g for g in groups if key in {(s.parameter, s.axis) for s in g.slices})
        number = next(s for s in group.slices if (s.parameter, s.axis) == key).channel
        order = [int(number[positions[0]]) for positions in claimed[key]]  # the label's number of each unit
        found = {
            (s.parameter, s.axis): [np.flatnonzero(s.channel == channel).tolist() for channel in order]
            for s in group.slices
        }
        assert found == claimed


def _predicts_words(model: Any) -> bool:
    return type(model).__name__.endswith(("CausalLM", "LMHeadModel", "ConditionalGeneration"))


def _own_name(name: str, reads: str) -> str:
    """As the class of transformers 5 calls a tensor of a ViT's file."""
    own = "fc2" if f".{reads}." in name else "fc1"
    layer, end = name.split(".layer.")[1].split(".")[0], name.rpartition(".")[2]
    return f"{name.partition('.')[0]}.layers.{layer}.mlp.{own}.{end}"


@pytest.mark.parametrize("kind", [kind for kind in TINY if FAMILIES[kind].cuts])
def test_a_folder_comes_out_smaller_and_computes_what_is_kept(kind: str, tmp_path: Path) -> None:
    """Against the user's own model, in which hooks put zeros where the reading layers lost an input. Which these are is
    seen in the columns of the weights that came out."""
    checkpoint = open_checkpoint_folder(tiny_folder(kind, tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    result = slim_folder(checkpoint, out, Recipe.of(ratio=0.5))
    assert result.plan.parameters == sum(t.numel() for t in _tensors(out).values()) < checkpoint.parameters
    small = load_folder(out, torch.float32).model
    dense = load_folder(checkpoint.path, torch.float32).model
    before = _outputs(dense)
    readers = [(site, _reader(dense, site), _reader(small, site)) for site in result.plan.sites]
    for site, large, little in readers:
        axis = site.reads.axis
        columns, kept = large.weight.movedim(axis, 0), little.weight.movedim(axis, 0)
        mask = (columns[:, None] == kept[None]).all(2).any(1)
        assert int(mask.sum()) == len(kept) < len(columns)
        large.register_forward_pre_hook(lambda _, x, mask=mask: (x[0] * mask,))
    masked = _outputs(dense)
    assert (masked - before).abs().max() > 0.01 * before.abs().max(), "what is gone must show"
    torch.testing.assert_close(_outputs(small), masked, rtol=0, atol=1e-5 * float(masked.abs().max()))
    said = json.loads((out / "config.json").read_text())
    assert {k for k in said if said[k] != checkpoint.config.get(k)} <= {
        *(key for cut in checkpoint.family.cuts for key in cut.keys),
        *(cut.within for cut in checkpoint.family.cuts),
        "head_dim",
    }


@pytest.mark.parametrize("kind", [kind for kind in TINY if not FAMILIES[kind].cuts])
def test_a_width_that_cannot_be_said_is_refused(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint_folder(tiny_folder(kind, tmp_path))
    with pytest.raises(InputError, match=rf"can be written as a folder, since .*{FAMILIES[kind].instead[:20]}"):
        plan_folder(checkpoint, 0.5)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_checkpoint_folder(folder)
    return {name: opened.read(name) for name in opened.tensors}


def _reader(model: Any, site: Any) -> Any:
    layers = f"{site.cut.layers}." if site.cut.part else "."
    end = f"{layers}{site.layer}.{site.cut.module or site.cut.reads}"
    return next(module for name, module in model.named_modules() if name.endswith(end))


@torch.inference_mode()
def _outputs(model: Any) -> torch.Tensor:
    return outputs_of(model, sample_of(model))


def test_another_cut_than_was_claimed_is_seen(tmp_path: Path) -> None:
    """The proof fails where a layer that makes channels lost others than the layer that reads them."""
    checkpoint = open_checkpoint_folder(tiny_folder("llama", tmp_path))
    plan = plan_folder(checkpoint, 0.5)
    units = {site: torch.arange(plan.kept[site.cut.name][0]) for site in plan.sites}
    wrong = checkpoint.read("model.layers.1.mlp.up_proj.weight")[-plan.kept["mlp"][0] :].contiguous()
    out = tmp_path / "out"
    out.mkdir()
    write_folder(Kept(plan, units, {"model.layers.1.mlp.up_proj.weight": wrong}), out)
    with pytest.raises(ProofError, match="differs from the masked dense model"):
        prove_folder(Kept(plan, units), out)


def test_a_configuration_alone_gives_the_same_plan(tmp_path: Path) -> None:
    checkpoint = open_checkpoint_folder(tiny_folder("llama", tmp_path))
    plan, planned = plan_folder(checkpoint, 0.5), plan_of_config(checkpoint.config, 0.5)
    assert (planned.kept, planned.shapes) == (plan.kept, plan.shapes)
    assert {k: planned.config[k] for k in ("intermediate_size", "num_key_value_heads")} == {
        k: plan.config[k] for k in ("intermediate_size", "num_key_value_heads")
    }
