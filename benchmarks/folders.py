"""Folders of transformers: what is left of a trained Llama, and the time and memory of large ones.

python benchmarks/folders.py                     all that follows -> results/folders.json and .md
python benchmarks/folders.py --parts quality     of: quality, large, plans
python benchmarks/folders.py --parts large --layers 2

quality: a Llama of 1.2 million parameters with grouped queries, trained here for minutes on bytes of film reviews
(SLIM_MODEL_DATA, text/imdb), whose perplexity on reviews it has not seen is read before and after. large: a random
Llama of 1.1 billion parameters in bf16, with 64 sequences of 256 tokens. plans: configurations of 7 and 70 billion,
of which no weight is read. The rows of the parts that ran replace those of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from datasets import data_file
from provenance import RESULTS, ROOT, provenance, summary
from stored_rows import load_rows, save_rows

TRAINED = ROOT / "build" / "trained" / "llama_bytes"
_LENGTH, _BATCH, _STEPS = 128, 16, 800
_WAYS = (
    ("l1", None),
    ("power", "none"),
    ("power", "affine"),
    ("variance:weighted=true", "affine"),
    ("reconstruction", "affine"),
)
_RATIOS = (0.1, 0.2, 0.3, 0.5)
Row = dict[str, Any]


# -- a trained one --------------------------------------------------------------------------------------------------


def _reviews(part: str) -> str:
    """The texts of a part, one a line."""
    with lzma.open(data_file(f"text/imdb/{part}_5000.tsv.xz"), "rt", encoding="utf-8") as file:
        return "\n".join(line.rstrip("\n").partition("\t")[2] for line in file)


def train() -> None:
    """Write the trained model to ``TRAINED``, unless it is there."""
    if (TRAINED / "config.json").exists():
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
    tokens = torch.frombuffer(bytearray(_reviews("train").encode()), dtype=torch.uint8)
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
    model.save_pretrained(TRAINED)


def quality() -> Iterator[Row]:
    """Perplexity by ratio, criterion and recovery."""
    train()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "reviews.txt"
        text.write_text(_reviews("test"), encoding="utf-8")
        data = f"text:{text},tokenizer=bytes,length={_LENGTH}"
        for ratio in _RATIOS:
            for criterion, recover in _WAYS:
                how = ("--criterion", criterion, "--recover", recover or "none", "--samples", "512")
                report, _ = _command(TRAINED, folder, ratio, *how, "--data", data)
                seen = report["perplexity"]
                yield {
                    "ratio": ratio,
                    "criterion": criterion,
                    "recover": recover or "none",
                    "dense": seen["dense"],
                    "cut": seen["cut"],
                    "refitted": seen.get("refitted"),
                    "params": [report["dense"]["params"], report["slim"]["params"]],
                    "widths": report["widths"],
                }


def _command(source: Path, folder: str, ratio: float, *options: str) -> tuple[Row, Row]:
    """The report of a run in a process of its own; its seconds and its peak memory."""
    place = Path(tempfile.mkdtemp(dir=folder))
    words = [
        str(source),
        str(place / "out"),
        "--ratio",
        str(ratio),
        "--report",
        str(place / "r.json"),
        "--quiet",
        *options,
    ]
    code = (
        "import json, resource, sys\nfrom slim_model.cli import run\ncode = run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps({'cpu_s': used.ru_utime + used.ru_stime, 'peak_bytes': used.ru_maxrss * 1024}))\n"
        "sys.exit(code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    used = json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - started}
    return json.loads((place / "r.json").read_text()), used


# -- large ones -----------------------------------------------------------------------------------------------------


def large(layers: int) -> Iterator[Row]:
    """TinyLlama's widths, random, in shards of 500 MB."""
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            dtype="bfloat16",
        )
        torch.manual_seed(0)
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        _write_random(model, config, Path(folder) / "dense")
        text = Path(folder) / "reviews.txt"
        text.write_text(_reviews("test"), encoding="utf-8")
        data = f"text:{text},tokenizer=bytes"
        report, used = _command(Path(folder) / "dense", folder, 0.2, "--data", data, "--samples", "64")
        yield {
            "layers": layers,
            "params": [report["dense"]["params"], report["slim"]["params"]],
            "widths": report["widths"],
            "proof": report["proof"]["masked_max_rel_error"],
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0],
            **used,
        }


def _write_random(model: Any, config: Any, place: Path) -> None:
    """A folder of the model's shapes, layer by layer: the whole is never in memory."""
    from safetensors.torch import save_file

    place.mkdir()
    config.architectures = [type(model).__name__]
    config.save_pretrained(place)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = tuple(tensor.shape)
    for shard, shapes in shards.items():
        drawn = {n: torch.ones(s) if "norm" in n else torch.randn(s) * s[-1] ** -0.5 for n, s in shapes.items()}
        save_file({n: t.bfloat16() for n, t in drawn.items()}, place / shard, metadata={"format": "pt"})
    places = {name: shard for shard, shapes in shards.items() for name in shapes}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


_CONFIGS = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


def plans() -> Iterator[Row]:
    """Each in a process of its own."""
    for name, widths in _CONFIGS.items():
        code = (
            "import json, resource, sys, time\nstarted = time.perf_counter()\n"
            "from slim_model.folders.meta import plan_of_config\n"
            "plan = plan_of_config(json.loads(sys.argv[1]), 0.2)\n"
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
            "print(json.dumps({'params': [plan.checkpoint.parameters, plan.parameters], 'widths': dict(plan.kept),"
            " 'seconds': time.perf_counter() - started, 'peak_bytes': peak}))"
        )
        config = {"model_type": "llama", "vocab_size": 32000, "architectures": ["LlamaForCausalLM"], **widths}
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, check=True
        )
        yield {"config": name, **json.loads(done.stdout.splitlines()[-1])}


# -- results --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[..., Iterator[Row]]] = {"quality": quality, "large": large, "plans": plans}


def write_table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    of = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    lines = ["# Folders of transformers", "", "Written by `python benchmarks/folders.py`.", ""]
    lines += _quality_lines(of["quality"]) + _cost_lines(of["large"], of["plans"])
    return "\n".join([*lines, summary(rows[-1]["provenance"]), ""])


def _quality_lines(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## What is left of a trained Llama",
        "",
        "1.2 million parameters, bytes of film reviews. Perplexity of a byte on reviews that it has not seen: dense "
        f"{rows[0]['dense']:.2f}. Nothing was trained after the cut.",
        "",
        "| ratio | parameters left | criterion | cut | refitted by least squares |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        after = f"{row['refitted']:.2f}" if row["refitted"] else "-"
        left = row["params"][1] / row["params"][0]
        lines.append(f"| {row['ratio']:g} | {left:.0%} | `{row['criterion']}` | {row['cut']:.2f} | {after} |")
    return [*lines, ""]


def _cost_lines(large: list[Row], plans: list[Row]) -> list[str]:
    if not large + plans:
        return []
    lines = ["## Time and memory", ""]
    lines += ["| what | parameters | seconds | of processor | peak memory |", "|---|---|---|---|---|"]
    for row in large:
        what = f"random Llama in bf16, {row['layers']} layers, ratio 0.2, 64 sequences of 256 tokens"
        what += f", {row['threads']} threads, load {row['load']:.0f}"
        spent = f"{row['seconds']:.0f} | {row['cpu_s']:.0f} | {row['peak_bytes'] / 1e9:.1f} GB"
        lines.append(f"| {what} | {row['params'][0] / 1e9:.2f} B | {spent} |")
    for row in plans:
        spent = f"{row['seconds']:.1f} | - | {row['peak_bytes'] / 1e9:.1f} GB"
        lines.append(
            f"| plan of a {row['config']} configuration, no weights | {row['params'][0] / 1e9:.1f} B | {spent} |"
        )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--layers", type=int, default=22, help="of the large one; 22 make 1.1 billion parameters")
    asked = parser.parse_args()
    place = RESULTS / "folders.json"
    rows = load_rows(place)
    for part in asked.parts:
        found = PARTS[part](asked.layers) if part == "large" else PARTS[part]()
        made = [{"part": part, **row, "provenance": provenance()} for row in found]
        rows = [row for row in rows if row["part"] != part] + made
        save_rows(place, rows)
        place.with_suffix(".md").write_text(write_table(rows))


if __name__ == "__main__":
    main()
