"""A test of refactorings: what forty runs of the command make, recorded before a change and compared after it.

    scripts/unchanged record before.json          # on the old code
    scripts/unchanged compare before.json         # on the new code: names every run that differs, exit code 1

Of each run: the exit code, the messages, the report (plans, pins, proof, costs; seconds and machine left out), and a
digest of the ONNX file without its metadata. It knows nothing of the package but its command line, so that every name
inside may change. ``--only GLOB`` picks runs; ``--root DIR`` takes the package from another checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
_UNTOLD = {"seconds", "environment", "latency", "latency_ms", "recipe", "schema"}
"""Of a report: what differs from run to run and from machine to machine, and what was asked for."""


class Run(NamedTuple):
    """``build`` makes the model; ``options`` are those of the command, with ``{data}`` for a file of samples."""

    build: Callable[[], Any]
    options: str = ""


def vision(name: str, **options: Any) -> Any:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


def timm_model(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, **options)


def small_vit(image: int = 32) -> Any:
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=image, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )


def recurrent(name: str) -> Any:
    import recurrent_models

    return getattr(recurrent_models, name)()


def own(name: str) -> Any:
    """A net of benchmarks/nets.py, with the published weights where the data folder has them."""
    import torch

    import nets

    model = getattr(nets, f"cifar_{name}")()
    with contextlib.suppress(Exception):  # drawn weights do as well; before and after take the same ones
        from datasets import data_file

        stored = torch.load(data_file(_PUBLISHED[name]), map_location="cpu", weights_only=True)["state_dict"]
        model.load_state_dict({key.removeprefix("module."): value for key, value in stored.items()})
    return model


_PUBLISHED = {
    "resnet20": "weights/resnet-cifar10/resnet20-12fca82f.th",
    "resnet56": "weights/resnet-cifar10/resnet56-4bfd9763.th",
}

SMALL = "--input 2x3x64x64"
CIFAR = "--input 2x3x32x32"
NET = f"{CIFAR} --trust-pickle --code {{nets}}"
DATA = f"{NET} --data npz:{{data}} --samples 128 --batch 32"

RUNS: dict[str, Run] = {
    "resnet18": Run(partial(vision, "resnet18"), f"{SMALL} --save {{save}}"),
    "resnet50-0.3": Run(partial(vision, "resnet50"), f"{SMALL} --ratio 0.3 --multiple-of 1"),
    "resnet18-global": Run(partial(vision, "resnet18"), f"{SMALL} --scope global --criterion l2"),
    "resnet18-keep": Run(partial(vision, "resnet18"), f"{SMALL} --keep layer1.* --ratio 0.6"),
    "resnext50": Run(partial(vision, "resnext50_32x4d"), f"{SMALL} --ratio 0.25"),
    "vgg11_bn-fpgm": Run(partial(vision, "vgg11_bn"), f"{SMALL} --criterion fpgm"),
    "mobilenet_v2-macs": Run(partial(vision, "mobilenet_v2"), f"{SMALL} --of macs --allocate greedy"),
    "mobilenet_v3-params": Run(partial(vision, "mobilenet_v3_small"), f"{SMALL} --target params=1.2M"),
    "densenet121": Run(partial(vision, "densenet121"), f"{SMALL} --ratio 0.4"),
    "shufflenet": Run(partial(vision, "shufflenet_v2_x0_5"), SMALL),
    "efficientnet_b0": Run(partial(vision, "efficientnet_b0"), SMALL),
    "regnet_y": Run(partial(vision, "regnet_y_400mf"), f"{SMALL} --allocate isomorphic"),
    "googlenet": Run(partial(vision, "googlenet", init_weights=True), f"{SMALL} --seed 3 --criterion random"),
    "squeezenet": Run(partial(vision, "squeezenet1_1"), f"{SMALL} --target macs=10M --allocate knapsack"),
    "convnext": Run(partial(vision, "convnext_tiny"), SMALL),
    "swin_t": Run(partial(vision, "swin_t"), SMALL),
    "deeplab": Run(partial(vision, "deeplabv3_mobilenet_v3_large", weights_backbone=None), SMALL),
    "ssdlite": Run(partial(vision, "ssdlite320_mobilenet_v3_large", weights_backbone=None), "--input 3x96x96"),
    "r3d": Run(partial(vision, "r3d_18"), "--input 1x3x4x32x32 --ratio 0.4"),
    "vit-heads": Run(small_vit, f"{CIFAR} --attention heads"),
    "vit-both": Run(small_vit, f"{CIFAR} --attention both"),
    "vit-width": Run(small_vit, f"{CIFAR} --static-batch"),
    "timm-resnet10t": Run(partial(timm_model, "resnet10t"), SMALL),
    "timm-ghostnet": Run(partial(timm_model, "ghostnet_050"), SMALL),
    "timm-mobilevit": Run(partial(timm_model, "mobilevit_xxs"), SMALL),
    "timm-mixer": Run(partial(timm_model, "mixer_s32_224", img_size=64), SMALL),
    "timm-levit": Run(partial(timm_model, "levit_128s"), "--input 2x3x224x224"),
    "tagger": Run(partial(recurrent, "Tagger"), "--input 2x9:int64 --trust-pickle --code {recurrent}"),
    "keywords": Run(partial(recurrent, "KeywordNet"), "--input 2x40x30 --trust-pickle --code {recurrent}"),
    "torch-pruning": Run(partial(vision, "resnet18"), f"{SMALL} --engine torch-pruning"),
    "resnet20-bytes": Run(partial(own, "resnet20"), f"{NET} --target bytes=500kB"),
    "resnet20-bias": Run(partial(own, "resnet20"), f"{DATA} --recover bias --criterion mean-activation"),
    "resnet20-affine": Run(partial(own, "resnet20"), f"{DATA} --criterion reconstruction --recalibrate"),
    "resnet20-full": Run(partial(own, "resnet20"), f"{DATA} --recover full --criterion taylor"),
    "resnet20-blocks": Run(partial(own, "resnet20"), f"{DATA} --recover blocks --criterion apoz"),
    "resnet56-data-free": Run(partial(own, "resnet56"), f"{NET} --recover data-free --criterion kernel"),
    "resnet20-sensitivity": Run(partial(own, "resnet20"), f"{DATA} --of macs --allocate sensitivity"),
    "resnet20-damage": Run(partial(own, "resnet20"), f"{DATA} --of macs --ratio 0.3 --allocate damage"),
    "resnet20-finetune": Run(partial(own, "resnet20"), f"{DATA} --finetune 1 --hints 5 --max-drop 1"),
    "resnet20-rounds": Run(partial(own, "resnet20"), f"{DATA} --finetune 1 --iterations 2 --optimizer adamw"),
    "too-much": Run(partial(own, "resnet20"), f"{NET} --target macs=1"),
    "bad-criterion": Run(partial(own, "resnet20"), f"{NET} --criterion l3"),
}


def perform(name: str, run: Run) -> dict[str, Any]:
    """What the command says and makes of ``run``, in a folder of its own."""
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        torch.manual_seed(0)
        torch.save(run.build().eval(), "in.pt")
        drawn = np.random.default_rng(0)
        x = drawn.normal(size=(160, 3, 32, 32)).astype("float32")
        np.savez("samples.npz", x=x, y=drawn.integers(0, 10, 160))
        places = {
            "data": "samples.npz",
            "save": "small.safetensors",
            "recurrent": PROJECT / "scripts/zoo/recurrent_models.py",
            "nets": PROJECT / "benchmarks/nets.py",
        }
        options = run.options.format(**places).split()
        random.seed(0)
        code, said = _command(["in.pt", "out.onnx", "--no-bench", "--report", "report.json", *options])
        made: dict[str, Any] = {"exit": code, "said": said, "report": None, "onnx": None}
        if Path("report.json").exists():
            made["report"] = _told(json.loads(Path("report.json").read_text()))
        if Path("out.onnx").exists():
            made["onnx"] = _digest(Path("out.onnx"))
        if Path("small.safetensors").exists():
            made["saved"] = _stored(Path("small.safetensors"))
        return made


def _command(arguments: list[str]) -> tuple[int, list[str]]:
    """The exit code, and what was printed but for the lines of progress and the seconds in tables."""
    from slim_model import cli

    out, err = io.StringIO(), io.StringIO()
    for stream in (out, err):
        stream.reconfigure = lambda **_: None  # type: ignore[attr-defined]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error:")]
    return code, errors


def _told(report: Any) -> Any:
    """``report`` without times, machine, and digests of pickles, which hold the names of files; of the proof's errors,
    which are rounding, whether they are small."""
    if isinstance(report, dict):
        told = {key: value for key, value in report.items() if key not in _UNTOLD and key != "sha256"}
        return {
            key: value < 1e-4 if key.endswith("rel_error") and value else _told(value) for key, value in told.items()
        }
    if isinstance(report, list):
        return [_told(value) for value in report]
    if isinstance(report, float):
        return float(f"{report:.4g}")
    return report


def _digest(path: Path) -> str:
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _stored(path: Path) -> str:
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        digest.update(name.encode() + str(value.shape).encode() + value.tobytes())
    return digest.hexdigest()


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """One line for each place where the two differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [key for key in before | after if key not in _UNTOLD]:
            yield from differences(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif before != after:
        yield f"{where}: {str(before)[:100]} -> {str(after)[:100]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--root", type=Path, default=PROJECT)
    given = parser.parse_args()
    sys.path[:0] = [str(given.root / "src"), str(PROJECT / "scripts/zoo"), str(PROJECT / "benchmarks")]
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of another order are other bits
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    known = json.loads(given.file.read_text()) if given.file.exists() else {}
    differing = 0
    for name, run in RUNS.items():
        if not fnmatch.fnmatch(name, given.only):
            continue
        started = time.perf_counter()
        made = perform(name, run)
        lines = list(differences(known.get(name), made)) if given.do == "compare" else []
        differing += bool(lines)
        said = "differs" if lines else f"exit {made['exit']}"
        print(f"{name:24} {said:8} {time.perf_counter() - started:6.1f} s", *lines[:12], sep="\n    ", flush=True)
        if given.do == "record":
            known[name] = made
            given.file.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{differing} runs differ" if given.do == "compare" else f"recorded {len(known)} runs in {given.file}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
