"""Where results are written: only regular files are replaced, links are followed, bad places are said before work."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from slim_model.atomic_write import beside
from slim_model.commands.outputs import check_output_paths, publish
from slim_model.errors import InputError


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null


def _socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(path))


SPECIAL = {"named pipe": _pipe, "device": _device, "socket": _socket}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str, linked: bool) -> None:
    special = tmp_path / "special"
    SPECIAL[kind](special)
    before = special.lstat()
    place = tmp_path / "out.onnx"
    if linked:
        place.symlink_to(special)
    else:
        place = special
    for write in (lambda: check_output_paths(tmp_path / "in.pt", [place]), lambda: publish(place, "text")):
        with pytest.raises(InputError, match=f"a {kind}, no regular file"):
            write()
    after = special.lstat()
    assert (before.st_mode, before.st_ino) == (after.st_mode, after.st_ino)
    assert list(tmp_path.glob(".*")) == []


def test_what_becomes_special_while_work_is_done_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "out.onnx"
    check_output_paths(tmp_path / "in.pt", [place])

    def write() -> None:
        with beside(place) as temporary:
            temporary.write_text("new")
            os.mkfifo(place)

    with pytest.raises(InputError, match="named pipe"):
        write()
    assert stat.S_ISFIFO(place.lstat().st_mode)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path: Path, there: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target, link = elsewhere / "real.json", tmp_path / "report.json"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    check_output_paths(tmp_path / "in.pt", [link])
    publish(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["real.json"]


def test_a_link_to_the_input_is_the_input(tmp_path: Path) -> None:
    source, link = tmp_path / "in.pt", tmp_path / "out.onnx"
    source.write_text("model")
    link.symlink_to(source)
    with pytest.raises(InputError, match="same file"):
        check_output_paths(source, [link])


BAD_PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a name of 256 bytes": (lambda folder: folder / ("n" * 251 + ".onnx"), "File name too long"),
    "a name that is not UTF-8": (lambda folder: folder / os.fsdecode(b"\xff\xfe.onnx"), "not UTF-8"),
    "a link in a circle": (lambda folder: _circle(folder / "out.onnx"), "symbolic links"),
    "no folder": (lambda folder: folder / "none" / "out.onnx", "does not exist"),
    "a folder": (lambda folder: folder, "is a folder"),
    "a file as folder": (lambda folder: _file(folder / "file") / "out.onnx", "Not a directory"),
}


def _circle(path: Path) -> Path:
    path.symlink_to(path)
    return path


def _file(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("name", BAD_PLACES)
def test_a_bad_place_is_said_before_work(tmp_path: Path, name: str) -> None:
    make, says = BAD_PLACES[name]
    with pytest.raises(InputError, match=says):
        check_output_paths(tmp_path / "in.pt", [make(tmp_path)])
    assert not list(tmp_path.glob(".*"))


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    place = tmp_path / ("n" * 250 + ".onnx")
    check_output_paths(tmp_path / "in.pt", [place])
    publish(place, "new")
    assert place.read_text() == "new"


def test_a_deleted_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="working folder was deleted"):
        check_output_paths(Path("in.pt"), [Path("out.onnx")])


def test_a_full_disk_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "report.json"
    place.write_text("old")

    def full(self: Path, text: str, **_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        publish(place, "new")
    assert place.read_text() == "old"
    assert list(tmp_path.glob(".*")) == []


def test_what_lies_beside_the_file_is_moved_with_it(tmp_path: Path) -> None:
    place = tmp_path / "large.onnx"
    with beside(place) as temporary:
        temporary.write_text("model")
        temporary.with_name(f"{temporary.name}.data").write_text("weights")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "large.onnx": "model",
        "large.onnx.data": "weights",
    }
