"""Folders of transformers: what is left of trained ones, and the time and memory of large ones.

python benchmarks/folders.py                     all that follows -> results/folders.json and .md
python benchmarks/folders.py --parts quality     of: quality, encoder, vit, large, plans
python benchmarks/folders.py --parts large --layers 2
python benchmarks/folders.py --again             rows that are there already, too

quality: a Llama of 1.2 million parameters with grouped queries, trained here for minutes on bytes of film reviews
(SLIM_MODEL_DATA, text/imdb), whose perplexity on reviews it has not seen is read before and after; also of what
Torch-Pruning's recipe for language models leaves. encoder: AntiBERTy, 26 million parameters, on sequences of germline
genes that are not calibrated on (pip install --no-deps antiberty==0.1.3 anarci==2026.2.13.2: only their files are
read). vit: a ViT of MNIST (SLIM_MODEL_DATA, weights/vit-mnist), written as a folder. large: a random Llama of 1.1
billion parameters in bf16, with 64 sequences of 256 tokens. plans: configurations of 7 and 70 billion, of which no
weight is read. Each row is saved as soon as it is there; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from folder_quality import Case, Row, encoder_cases, quality_cases, reviews, run_slim, vit_cases
from provenance import RESULTS, provenance, summary
from stored_rows import load_rows, save_rows

# -- large ones -----------------------------------------------------------------------------------------------------


def large_cases(layers: int) -> Iterator[Case]:
    """TinyLlama's widths, random."""
    yield {"layers": layers}, lambda: _large(layers)


def _large(layers: int) -> Row:
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
        text.write_text(reviews("test"), encoding="utf-8")
        data = f"text:{text},tokenizer=bytes"
        report, used = run_slim(Path(folder) / "dense", folder, 0.2, "--data", data, "--samples", "64")
        return {
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


def plan_cases() -> Iterator[Case]:
    """Each in a process of its own."""
    for name, widths in _CONFIGS.items():
        yield {"config": name}, lambda widths=widths: _plan(widths)


def _plan(widths: dict[str, int]) -> Row:
    code = (
        "import json, resource, sys, time\nstarted = time.perf_counter()\n"
        "from slim_model.folders.meta import plan_of_config\n"
        "plan = plan_of_config(json.loads(sys.argv[1]), 0.2)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps({'params': [plan.checkpoint.parameters, plan.parameters], 'widths': dict(plan.kept),"
        " 'seconds': time.perf_counter() - started, 'peak_bytes': peak}))"
    )
    config = {"model_type": "llama", "vocab_size": 32000, "architectures": ["LlamaForCausalLM"], **widths}
    done = subprocess.run([sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


# -- results --------------------------------------------------------------------------------------------------------

PARTS = ("quality", "encoder", "vit", "large", "plans")


def write_table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    of = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    lines = ["# Folders of transformers", "", "Written by `python benchmarks/folders.py`.", ""]
    lines += _quality_lines(of["quality"]) + _encoder_lines(of["encoder"]) + _vit_lines(of["vit"])
    lines += _cost_lines(of["large"], of["plans"])
    last = max((row["provenance"] for row in rows), key=lambda found: found["date"])
    return "\n".join([*lines, f"{summary(last)}; transformers {transformers.__version__}", ""])


def _quality_lines(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## What is left of a trained Llama",
        "",
        "1.2 million parameters, bytes of film reviews. Perplexity of a byte on reviews that it has not seen: dense "
        f"{rows[0]['dense']:.2f}. Nothing was trained after the cut. `--residual` takes hidden channels in place of "
        "key-value groups. Torch-Pruning's recipe for language models takes hidden channels, MLP channels and heads at "
        "one ratio: once at ours, and once at the ratio that leaves as many parameters as `l1` does.",
        "",
        "| ratio | parameters left | criterion | cut | refitted by least squares |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["ratio"]):
        after = f"{row['refitted']:.2f}" if row["refitted"] else "-"
        left = row["params"][1] / row["params"][0]
        lines.append(f"| {row['ratio']:g} | {left:.0%} | `{row['criterion']}` | {row['cut']:.2f} | {after} |")
    return [*lines, ""]


def _encoder_lines(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    dense = rows[0]["dense"]
    lines = [
        "## What is left of AntiBERTy",
        "",
        f"{rows[0]['params'][0] / 1e6:.0f} million parameters, amino acids of germline genes; those that are asked for "
        "are of genes that were not calibrated on. One residue in seven is hidden. Dense: perplexity "
        f"{dense['perplexity']:.3f}, {dense['accuracy']:.1%} right. Heads and hidden size stay.",
        "",
        "| ratio of MLP channels | parameters left | criterion | recovery | perplexity | right |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["ratio"]):
        how = f"`{row['criterion']}` | {row['recover']} | {row['slim']['perplexity']:.3f}"
        left = row["params"][1] / row["params"][0]
        lines.append(f"| {row['ratio']:g} | {left:.0%} | {how} | {row['slim']['accuracy']:.1%} |")
    return [*lines, ""]


def _vit_lines(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## What is left of a ViT",
        "",
        f"{rows[0]['params'][0]:,} parameters, MNIST; {rows[0]['dense']:.2%} of the 10,000 test pictures are right. "
        "Calibrated on 512 others. Heads and hidden size stay.",
        "",
        "| ratio of MLP channels | parameters left | criterion | recovery | right |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        left = row["params"][1] / row["params"][0]
        lines.append(f"| {row['ratio']:g} | {left:.0%} | `{row['criterion']}` | {row['recover']} | {row['slim']:.2%} |")
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
    parser.add_argument("--ratios", nargs="+", type=float, help="of the parts that have several; default: all")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    asked = parser.parse_args()
    makers: dict[str, Callable[[], Iterator[Case]]] = {
        "quality": quality_cases,
        "encoder": encoder_cases,
        "vit": vit_cases,
        "large": lambda: large_cases(asked.layers),
        "plans": plan_cases,
    }
    place = RESULTS / "folders.json"
    for part in asked.parts:
        for key, measure in makers[part]():
            key = {"part": part, **key}
            rows = load_rows(place)
            if asked.ratios and key.get("ratio", asked.ratios[0]) not in asked.ratios:
                continue
            there = [row for row in rows if all(row.get(name) == value for name, value in key.items())]
            if there and not asked.again:
                continue
            print(*key.values(), flush=True)
            others = [row for row in rows if row not in there]
            save_rows(place, [*others, {**key, **measure(), "provenance": provenance()}])
            place.with_suffix(".md").write_text(write_table(load_rows(place)))


if __name__ == "__main__":
    main()
