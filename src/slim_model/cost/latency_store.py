"""Where latency tables are kept on disk, and how they are read and appended to."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from slim_model.atomic_write import reason
from slim_model.cost.latency_table import LatencyTable, Setting, make_table
from slim_model.errors import InputError
from slim_model.measuring.machine import cpu_flags, environment, vector_width_channels
from slim_model.measuring.runtimes import RUNTIMES, Runtime, version_of
from slim_model.ops import LayerShape

_PLACE = Path("slim-model") / "latency"


def setting_of(row: Runtime, *, threads: int = 1, dtype: str = "float32", batch: int = 1) -> Setting:
    """The setting of this machine. The processor is told by its name and the instructions it has."""
    if row.device == "cuda":
        machine = environment()["devices"][0]
    else:
        flags = hashlib.sha256(" ".join(cpu_flags()).encode()).hexdigest()[:12]
        machine = f"{environment()['cpu']}, {flags}"
    return Setting(machine, row.name, version_of(*row.packages) or "", threads, dtype, batch)


def cache_folder() -> Path | None:
    """Where tables lie unless the user says otherwise: in the folder for caches of this system. None where the user
    has no home, as in a container with a bare user number."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / _PLACE
    if platform.system() == "Windows" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / _PLACE
    try:
        home = Path.home()
    except RuntimeError:
        return None
    folders = {"Darwin": "Library/Caches", "Windows": "AppData/Local"}
    return home / folders.get(platform.system(), ".cache") / _PLACE


def table_path(setting: Setting, cache: Path | None = None) -> Path | None:
    """The file of a table in ``cache``, or in the folder for caches; None where there is none."""
    folder = cache or cache_folder()
    told = json.dumps(asdict(setting), sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{setting.runtime}-{digest}.jsonl"


def check_cache(setting: Setting, cache: Path | None) -> Path:
    """The file of a table, where it can be read and written; else InputError. Only who wants the table itself asks."""
    path = table_path(setting, cache)
    if path is None:
        raise InputError("there is no home folder to keep the table in. Say where: --cache DIR.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+"):
            pass
        if not path.stat().st_size:
            path.unlink()
    except OSError as error:
        raise InputError(
            f"cannot keep the table in {path}: {reason(error)}. Give another folder: --cache DIR."
        ) from error
    return path


def read_points(setting: Setting, cache: Path | None = None) -> dict[LayerShape, float]:
    """ms of the layers that were measured so far. The table is there to save time: what cannot be read is measured
    again, be it a line that was cut off, one that makes no sense, or the whole file."""
    path = table_path(setting, cache)
    try:
        text = "" if path is None else path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return {}
    return dict(point for line in text.splitlines() if (point := _point(line)) is not None)


def read_table(setting: Setting, cache: Path | None = None) -> LatencyTable:
    """What was measured so far; nothing yet where there is no file."""
    return make_table(setting, read_points(setting, cache))


def _point(line: str) -> tuple[LayerShape, float] | None:
    """A layer and its ms, of a line that has both in the types that they should have."""
    try:
        row = json.loads(line)
        layer = LayerShape(row["kind"], row["count"], tuple(map(tuple, row["fixed"])), tuple(row["widths"]))
        numbers = (layer.count, *layer.widths, *(n for part in layer.fixed for n in part))
        told = isinstance(layer.kind, str) and all(type(n) in (int, bool) for n in numbers)
        ms = float(row["ms"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (layer, ms) if told and 0 <= ms < math.inf else None


def append_points(
    setting: Setting, rows: Sequence[tuple[LayerShape, dict[str, Any]]], cache: Path | None = None
) -> str | None:
    """Add measured layers; a line that was cut off is ended first. Returns why they could not be kept, if so."""
    path = table_path(setting, cache)
    if path is None:
        return "there is no home folder"
    lines = [json.dumps(asdict(layer) | numbers) for layer, numbers in rows]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            size = file.tell()
            file.seek(max(0, size - 1))
            start = json.dumps({"setting": asdict(setting)}) if not size else "" if file.read() != b"\n" else None
            file.write("".join(f"{line}\n" for line in ([start] if start is not None else []) + lines).encode())
    except OSError as error:
        return reason(error)
    return None


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
