"""Where latency tables are kept on disk, and how they are read and appended to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from slim_model.cost.latency_table import LatencyTable, Setting, make_table
from slim_model.measuring.machine import cpu_flags, environment, vector_width_channels
from slim_model.measuring.runtimes import RUNTIMES, Runtime, version_of
from slim_model.ops import Layer

_MEASURED_AS = 2
"""Goes up with any change to how layers are timed: figures of two ways do not belong in one table."""


def setting_of(row: Runtime, *, threads: int = 1, dtype: str = "float32", batch: int = 1) -> Setting:
    """The setting of this machine. The processor is told by its name and the instructions it has."""
    if row.device == "cuda":
        machine = environment()["devices"][0]
    else:
        flags = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:12]
        machine = f"{environment()['cpu']}, {flags}"
    return Setting(machine, row.name, version_of(*row.packages) or "", threads, dtype, batch)


def cache_folder() -> Path:
    """Where tables lie unless the user says otherwise: in the folder for caches of this system."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        root = Path(named)
    elif sys.platform == "darwin":
        root = Path.home() / "Library" / "Caches"
    elif platform.system() == "Windows":
        root = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        root = Path.home() / ".cache"
    return root / "slim-model" / "latency"


def table_path(setting: Setting, cache: Path | None = None) -> Path:
    told = json.dumps(asdict(setting) | {"measured_as": _MEASURED_AS}, sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return (cache or cache_folder()) / f"{setting.runtime}-{digest}.jsonl"


def read_table(setting: Setting, cache: Path | None = None) -> LatencyTable:
    """What was measured so far; nothing yet where there is no file."""
    return make_table(setting, dict(_read(table_path(setting, cache))))


def _read(path: Path) -> Iterable[tuple[Layer, float]]:
    """The last line may be cut off, where the process was killed."""
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "kind" in row:
            shape = tuple(tuple(part) for part in row["fixed"])
            yield Layer(row["kind"], row["count"], shape, tuple(row["widths"])), row["ms"]


def append(setting: Setting, rows: Sequence[tuple[Layer, dict[str, Any]]], cache: Path | None = None) -> None:
    """Add measured layers; a line that was cut off is ended first."""
    path = table_path(setting, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = path.read_bytes() if path.exists() else b""
    with path.open("a") as file:
        file.write(json.dumps({"setting": asdict(setting)}) + "\n" if not held else "" if held[-1:] == b"\n" else "\n")
        for layer, numbers in rows:
            file.write(json.dumps(asdict(layer) | numbers) + "\n")


def width_step(asked: int | str, device: str) -> int:
    """What layer widths are rounded to on this machine: the number ``asked`` for, or for ``"auto"`` the step that
    ``slim-model profile`` learned here, else what the kernels suggest."""
    if asked != "auto":
        return int(asked)
    return measured_step(device) or vector_width_channels(device)


def measured_step(device: str, cache: Path | None = None) -> int | None:
    """The width step of onnxruntime on this device with one thread, where it was learned on this machine."""
    row = RUNTIMES["onnxruntime" if device == "cpu" else "onnxruntime-cuda"]
    if device != "cpu" and not torch.cuda.is_available():
        return None
    table = read_table(setting_of(row), cache)
    return table.width_step() if table.steps else None
