"""The latency table on disk saves time and never decides: whatever is wrong with it, layers are measured again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from slim_model.cost import latency_store
from slim_model.cost.latency_store import append_points, check_cache, measured_step, read_points, setting_of, table_path
from slim_model.cost.latency_table import NOTHING, Setting
from slim_model.errors import InputError
from slim_model.measuring.runtimes import RUNTIMES
from slim_model.ops import LayerShape

SETTING = Setting("a machine", "onnxruntime", "1", 1, "float32", 1)
LINEAR = LayerShape("linear", 1, (), (8, 8))


def _line(**changes: object) -> str:
    return json.dumps(asdict(LINEAR) | {"ms": 1.5} | changes)


def _unreadable(path: Path) -> None:
    path.write_text(_line())
    path.chmod(0)


#: What may stand where the table should, and the points that are read from it.
BROKEN: dict[str, Callable[[Path], object]] = {
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00\n\x80\x81"),
    "no JSON": lambda path: path.write_text("{{{\n][\n"),
    "other JSON": lambda path: path.write_text('[1, 2]\n"text"\n3\nnull\n{"kind": 1}\n'),
    "nested beyond reading": lambda path: path.write_text("[" * 100_000 + "\n"),
    "kind of another type": lambda path: path.write_text(_line(kind=7)),
    "count of another type": lambda path: path.write_text(_line(count="1")),
    "widths of another type": lambda path: path.write_text(_line(widths=[1.5, 2])),
    "widths that are no list": lambda path: path.write_text(_line(widths=8)),
    "shape of another type": lambda path: path.write_text(_line(fixed=[["a"]])),
    "time of another type": lambda path: path.write_text(_line(ms=[1])),
    "no time": lambda path: path.write_text(_line(ms=None)),
    "infinite time": lambda path: path.write_text(_line(ms=float("inf"))),
    "time that is no number": lambda path: path.write_text(_line(ms=float("nan"))),
    "negative time": lambda path: path.write_text(_line(ms=-1)),
    "a folder": lambda path: path.mkdir(),
    "a link in a circle": lambda path: path.symlink_to(path),
    "empty": lambda path: path.touch(),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_as_none(tmp_path: Path, name: str) -> None:
    path = table_path(SETTING, tmp_path)
    assert path is not None
    BROKEN[name](path)
    assert read_points(SETTING, tmp_path) == {}
    said = append_points(SETTING, [(NOTHING, {"ms": 0.1})], tmp_path)
    if not path.is_file():
        assert said, "it is told why the times are not kept"
        return
    assert read_points(SETTING, tmp_path) == {NOTHING: 0.1}


def test_good_lines_beside_broken_ones_are_read(tmp_path: Path) -> None:
    path = table_path(SETTING, tmp_path)
    assert path is not None
    path.write_bytes(b"\xff\xff\n" + _line().encode() + b"\n{cut")
    append_points(SETTING, [(NOTHING, {"ms": 0.1})], tmp_path)
    assert read_points(SETTING, tmp_path) == {LINEAR: 1.5, NOTHING: 0.1}


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("")
    assert read_points(SETTING, cache) == {}
    assert append_points(SETTING, [(NOTHING, {"ms": 0.1})], cache) in ("Not a directory", "File exists")
    with pytest.raises(InputError, match=r"cannot keep the table in .* Give another folder: --cache DIR"):
        check_cache(SETTING, cache)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of a Unix system")
def test_a_cache_that_may_not_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold for root, so the refusal is made here."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    for name in ("open", "read_bytes", "mkdir"):
        monkeypatch.setattr(Path, name, refuse)
    assert read_points(SETTING, tmp_path) == {}
    assert append_points(SETTING, [(NOTHING, {"ms": 0.1})], tmp_path) == "Permission denied"
    with pytest.raises(InputError, match="Permission denied"):
        check_cache(SETTING, tmp_path)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with a bare user number there is neither HOME nor an entry of the user."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(latency_store.Path, "home", homeless)
    assert table_path(SETTING) is None
    assert read_points(SETTING) == {}
    assert measured_step("cpu") is None
    assert append_points(SETTING, [(NOTHING, {"ms": 0.1})]) == "there is no home folder"
    with pytest.raises(InputError, match=r"no home folder .* --cache DIR"):
        check_cache(SETTING, None)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_decides_no_width(no_tables: Path, name: str) -> None:
    """What `--multiple-of auto` asks before every run."""
    path = table_path(setting_of(RUNTIMES["onnxruntime"]))
    assert path is not None
    path.parent.mkdir(parents=True)
    BROKEN[name](path)
    assert measured_step("cpu") is None
