"""What is left of trained models after a cut: a small Llama, AntiBERTy and a ViT, each as a folder. `folders.py` runs
the cases and keeps the rows."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import itertools
import json
import lzma
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import nn

import datasets
from datasets import data_file
from provenance import ROOT
from slim_model.cli import run
from slim_model.data.options import DataOptions
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.running import perplexity
from slim_model.folders.tokens import read_tokens

Row = dict[str, Any]
Case = tuple[Row, Callable[[], Row]]
"""What tells a row from all others, and the rest of it."""

BUILD = ROOT / "build" / "trained"
LLAMA, ENCODER, VIT = BUILD / "llama_bytes", BUILD / "antiberty", BUILD / "vit_mnist"
RATIOS = (0.1, 0.2, 0.3, 0.5)
_LENGTH, _BATCH, _STEPS = 128, 16, 700
_SEQUENCES = 512
_WAYS = (
    ("l1", "none"),
    ("power", "none"),
    ("power", "affine"),
    ("variance:weighted=true", "affine"),
    ("reconstruction", "affine"),
)


def run_slim(source: Path, folder: str, ratio: float, *options: str) -> tuple[Row, Row]:
    """The report of a run in a process of its own; its seconds and its peak memory."""
    place = Path(tempfile.mkdtemp(dir=folder))
    words = [str(source), str(place / "out"), "--ratio", str(ratio), "--report", str(place / "r.json")]
    code = (
        "import json, resource, sys\nfrom slim_model.cli import run\ncode = run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps({'cpu_s': used.ru_utime + used.ru_stime, 'peak_bytes': used.ru_maxrss * 1024}))\n"
        "sys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words, "--quiet", *options], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    used = json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}
    return json.loads((place / "r.json").read_text()), used


@contextlib.contextmanager
def _slim(source: Path, ratio: float, criterion: str, *options: str) -> Iterator[tuple[Row, Path]]:
    """The report of a run in this process, and the folder that came out, while it lasts."""
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder) / "out", Path(folder) / "r.json"
        words = ["--ratio", str(ratio), "--criterion", criterion, "--report", str(report), "--quiet", *options]
        if run([str(source), str(out), *words]) not in (0, None):
            raise RuntimeError(f"{source.name} at {ratio:g} by {criterion} failed")
        yield json.loads(report.read_text()), out


# -- a Llama that is trained here -----------------------------------------------------------------------------------


def reviews(part: str) -> str:
    """The texts of a part, one a line."""
    with lzma.open(data_file(f"text/imdb/{part}_5000.tsv.xz"), "rt", encoding="utf-8") as file:
        return "\n".join(line.rstrip("\n").partition("\t")[2] for line in file)


def train_llama() -> None:
    """Write the trained model to ``LLAMA``, unless it is there."""
    if (LLAMA / "config.json").exists():
        return
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=144,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=12,
        num_key_value_heads=6,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config)
    tokens = torch.frombuffer(bytearray(reviews("train").encode()), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=_STEPS, pct_start=0.05)
    for step in range(_STEPS):
        starts = torch.randint(0, len(tokens) - _LENGTH, (_BATCH,))
        rows = torch.stack([tokens[start : start + _LENGTH] for start in starts.tolist()]).long()
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {_STEPS}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(LLAMA)


def quality_cases() -> Iterator[Case]:
    """By ratio, criterion and recovery; with hidden channels; then Torch-Pruning's recipe."""
    for ratio in RATIOS:
        for criterion, recover in _WAYS:
            key = {"ratio": ratio, "criterion": criterion, "recover": recover}
            yield key, lambda key=key: _llama_cut(**key)
    for ratio in RATIOS[1:]:
        key = {"ratio": ratio, "criterion": "power --residual", "recover": "affine"}
        yield key, lambda key=key: _llama_cut(**key)
    for ratio in RATIOS:
        for way in ("torch-pruning", "torch-pruning, as many parameters"):
            yield {"ratio": ratio, "criterion": way, "recover": "none"}, lambda way=way, ratio=ratio: _peer(ratio, way)


@contextlib.contextmanager
def _review_data() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "reviews.txt"
        text.write_text(reviews("test"), encoding="utf-8")
        yield f"text:{text},tokenizer=bytes,length={_LENGTH}"


def _llama_cut(ratio: float, criterion: str, recover: str) -> Row:
    train_llama()
    with _review_data() as data:
        name, *more = criterion.split()
        how = (*more, "--recover", recover, "--samples", str(_SEQUENCES), "--data", data)
        with _slim(LLAMA, ratio, name, *how) as (report, _):
            seen = report["perplexity"]
            return {
                "dense": seen["dense"],
                "cut": seen["cut"],
                "refitted": seen.get("refitted"),
                "params": [report["dense"]["params"], report["slim"]["params"]],
                "widths": report["widths"],
            }


def _peer(ratio: float, way: str) -> Row:
    """At ``ratio``, or where it leaves as many parameters as ours does at ``ratio``, or a little more."""
    train_llama()
    with _review_data() as data:
        options = DataOptions(data=data, samples=_SEQUENCES)
        held_out = read_tokens(open_checkpoint_folder(LLAMA), options, 254).held_out
        if way != "torch-pruning":
            with _slim(LLAMA, ratio, "l1") as (report, _):
                limit = report["slim"]["params"]
            ratio = _ratio_that_leaves(limit)
    dense = transformers.LlamaForCausalLM.from_pretrained(LLAMA).eval()
    small = _pruned_by_peer(ratio)
    return {
        "own_ratio": ratio,
        "dense": perplexity(dense, held_out),
        "cut": perplexity(small, held_out),
        "refitted": None,
        "params": [_count(dense), _count(small)],
    }


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _ratio_that_leaves(params: int) -> float:
    low, high = 0.0, 0.6
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if _count(_pruned_by_peer(middle)) >= params else (low, middle)
    return low


def _pruned_by_peer(ratio: float) -> Any:
    """The settings of examples/LLMs/prune_llm.py of Torch-Pruning: group norms, whole heads, widths in fours.
    How many queries share a group of keys is read off the shapes: its own lines are for an older transformers. While
    it follows the channels positions turn nothing: through their halves it did not come to an end in four minutes."""
    import torch_pruning
    from transformers.models.llama import modeling_llama

    model = transformers.LlamaForCausalLM.from_pretrained(LLAMA).eval()
    attentions = [layer.self_attn for layer in model.model.layers]
    heads = {a.q_proj: model.config.num_attention_heads for a in attentions}
    groups = {proj: model.config.num_key_value_heads for a in attentions for proj in (a.k_proj, a.v_proj)}
    with patch.object(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k)):
        pruner = torch_pruning.pruner.MetaPruner(
            model,
            example_inputs=torch.zeros(1, 16, dtype=torch.long),
            output_transform=lambda found: found.logits.sum(),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
            global_pruning=False,
            pruning_ratio=ratio,
            ignored_layers=[model.lm_head],
            num_heads=heads | groups,
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
            round_to=4,
        )
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in attentions:
        attention.num_key_value_groups = attention.q_proj.out_features // attention.k_proj.out_features
    return model


# -- an encoder whose weights come with a package -------------------------------------------------------------------

_RESIDUES = 108
_SPECIES = ("human", "mouse", "rhesus", "rat")


def write_encoder() -> None:
    """AntiBERTy as a BertForMaskedLM, with its tokenizer; its other heads are left out."""
    if (ENCODER / "config.json").exists():
        return
    source = _package("antiberty") / "trained_models"
    held = torch.load(source / "AntiBERTy_md_smooth" / "pytorch_model.bin", map_location="cpu", weights_only=True)
    said = json.loads((source / "AntiBERTy_md_smooth" / "config.json").read_text())
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = transformers.BertConfig(**{name: said[name] for name in wanted}, tie_word_embeddings=False)
    model = transformers.BertForMaskedLM(config)
    missing = model.load_state_dict(held, strict=False).missing_keys
    assert not missing, missing
    model.save_pretrained(ENCODER)
    shutil.copyfile(source / "vocab.txt", ENCODER / "vocab.txt")
    said_of_tokens = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (ENCODER / "tokenizer_config.json").write_text(json.dumps(said_of_tokens))


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(f"no package {name} here: see the head of folders.py")
    return Path(found.submodule_search_locations[0])


def antibodies() -> tuple[list[str], list[str]]:
    """To calibrate on, and of other genes to ask for: variable genes of heavy and light chains, each joined to one of
    its species, cut to equal length."""
    code = ast.parse((_package("anarci") / "germlines.py").read_text())
    genes = next(ast.literal_eval(node.value) for node in code.body if isinstance(node, ast.Assign))
    by_gene: dict[str, set[str]] = {}
    for chain, species in itertools.product("HKL", _SPECIES):
        joins = [gene.replace("-", "") for gene in genes["J"][chain].get(species, {}).values()]
        for number, (name, gene) in enumerate(genes["V"][chain].get(species, {}).items()):
            if joins and len(whole := gene.replace("-", "") + joins[number % len(joins)]) >= _RESIDUES:
                by_gene.setdefault(name.partition("*")[0], set()).add(whole[:_RESIDUES])
    names = sorted(by_gene)
    drawn = [names[index] for index in torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()]
    parts = drawn[len(drawn) // 5 :], drawn[: len(drawn) // 5]
    fit, held_out = ([sequence for name in part for sequence in sorted(by_gene[name])] for part in parts)
    return fit, sorted(set(held_out) - set(fit))


def encoder_cases() -> Iterator[Case]:
    """By ratio, criterion and recovery."""
    for ratio in RATIOS:
        for criterion, recover in (*_WAYS[:2], ("power", "bias"), *_WAYS[2:]):
            key = {"ratio": ratio, "criterion": criterion, "recover": recover}
            yield key, lambda key=key: _encoder_cut(**key)


def _encoder_cut(ratio: float, criterion: str, recover: str) -> Row:
    write_encoder()
    fit, held_out = antibodies()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "fit.txt"
        text.write_text("\n".join(f"[CLS] {' '.join(s)} [SEP]" for s in fit))
        how = ("--recover", recover, "--samples", str(_SEQUENCES), "--data", f"text:{text},length={_RESIDUES + 2}")
        with _slim(ENCODER, ratio, criterion, *how) as (report, out):
            dense, slim = (_masked_words(place, tuple(held_out)) for place in (ENCODER, out))
    params = [report["dense"]["params"], report["slim"]["params"]]
    return {"sequences": [len(fit), len(held_out)], "dense": dense, "slim": slim, "params": params}


@functools.cache
@torch.no_grad()
def _masked_words(folder: Path, sequences: tuple[str, ...]) -> Row:
    """Of one residue in seven, which the model does not see."""
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    x = torch.tensor([tokenizer(" ".join(sequence))["input_ids"] for sequence in sequences])
    hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 1 / 7
    hidden[:, [0, -1]] = False
    logits = torch.cat([model(part).logits for part in x.masked_fill(hidden, tokenizer.mask_token_id).split(16)])
    loss = nn.functional.cross_entropy(logits[hidden], x[hidden])
    return {
        "perplexity": math.exp(float(loss)),
        "accuracy": float((logits[hidden].argmax(1) == x[hidden]).float().mean()),
    }


# -- a ViT ----------------------------------------------------------------------------------------------------------


def write_vit() -> None:
    """The ViT of MNIST as a ViTForImageClassification."""
    if (VIT / "config.json").exists():
        return
    held = torch.load(data_file("weights/vit-mnist/vit_mnist_gpu.pt"), map_location="cpu", weights_only=True)
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        head_dim=64,
        intermediate_size=128,
        image_size=28,
        patch_size=4,
        num_channels=1,
        num_labels=10,
        qkv_bias=False,
        layer_norm_eps=1e-5,
    )
    model = transformers.ViTForImageClassification(config)
    tensors = {
        "vit.embeddings.cls_token": held["cls_token"],
        "vit.embeddings.position_embeddings": held["pos_embedding"],
        "vit.embeddings.patch_embeddings.projection.weight": held["to_patch_embedding.1.weight"].view(64, 1, 4, 4),
        "vit.embeddings.patch_embeddings.projection.bias": held["to_patch_embedding.1.bias"],
    }
    ends = {"vit.layernorm": "mlp_head.0", "classifier": "mlp_head.1"}
    for layer in range(6):
        own, theirs = f"vit.layers.{layer}", f"transformer.layers.{layer}"
        parts = zip("qkv", held[f"{theirs}.0.fn.to_qkv.weight"].chunk(3), strict=True)
        tensors |= {f"{own}.attention.{part}_proj.weight": weight.clone() for part, weight in parts}
        ends |= {
            f"{own}.attention.o_proj": f"{theirs}.0.fn.to_out.0",
            f"{own}.layernorm_before": f"{theirs}.0.norm",
            f"{own}.layernorm_after": f"{theirs}.1.norm",
            f"{own}.mlp.fc1": f"{theirs}.1.fn.net.0",
            f"{own}.mlp.fc2": f"{theirs}.1.fn.net.3",
        }
    for (own, theirs), kind in itertools.product(ends.items(), ("weight", "bias")):
        tensors[f"{own}.{kind}"] = held[f"{theirs}.{kind}"]
    model.load_state_dict(tensors)
    model.save_pretrained(VIT)


def vit_cases() -> Iterator[Case]:
    """By ratio, criterion and recovery."""
    ways = (("random", "none"), *_WAYS[:3], _WAYS[-1])
    for ratio, (criterion, recover) in itertools.product(RATIOS, ways):
        key = {"ratio": ratio, "criterion": criterion, "recover": recover}
        yield key, lambda key=key: _vit_cut(**key)


def _vit_cut(ratio: float, criterion: str, recover: str) -> Row:
    write_vit()
    data = ("--data", f"mnist:{data_file('mnist')}", "--mean", "0.1307", "--std", "0.3081", "--samples", "512")
    with _slim(VIT, ratio, criterion, "--recover", recover, *data) as (report, out):
        dense, slim = _right(VIT), _right(out)
    return {"dense": dense, "slim": slim, "params": [report["dense"]["params"], report["slim"]["params"]]}


@functools.cache
@torch.no_grad()
def _right(folder: Path) -> float:
    test = datasets.mnist("test")
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    found = torch.cat([model(part).logits.argmax(1) for part in test.inputs.split(100)])
    return float((found == test.labels).float().mean())
