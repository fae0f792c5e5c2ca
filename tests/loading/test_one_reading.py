"""What is vetted is what is loaded and what is hashed, whatever happens to the file on disk meanwhile."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from torch import nn

from model_files import INPUT, NET_SOURCE, exported, opened, small_net
from slim_model.loading import load, open_model, rehearse


def _program(path: Path, fill: float) -> None:
    exported(_filled(fill), path)


def _script(path: Path, fill: float) -> None:
    torch.jit.save(torch.jit.script(_filled(fill)), path)


def _module(path: Path, fill: float) -> None:
    torch.save(_filled(fill), path)


def _filled(fill: float) -> torch.nn.Module:
    net = small_net()
    with torch.no_grad():
        net.fc.weight.fill_(fill)
    return net


FORMS = {"exported program": _program, "torchscript": _script, "module": _module}


@pytest.mark.parametrize("change", ["overwritten", "replaced"])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_exchanged_is_loaded_as_it_was_vetted(
    file: Path, form: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step after the first reading the file on disk is another one."""
    FORMS[form](file, 1.0)
    other = file.with_name("other.pt")
    FORMS[form](other, 2.0)
    vetted = hashlib.sha256(file.read_bytes()).hexdigest()

    def exchange(work: Callable[..., Any]) -> Callable[..., Any]:
        def exchanging(*args: Any, **options: Any) -> Any:
            found = work(*args, **options)
            if change == "overwritten":
                file.write_bytes(other.read_bytes())
            else:
                other.with_name("copy").write_bytes(other.read_bytes())
                other.with_name("copy").replace(file)
            return found

        return exchanging

    for name in ("form_of", "vet_program", "vet_script"):
        monkeypatch.setattr(open_model, name, exchange(getattr(open_model, name)))
    subject = opened(file, inputs=["2x3x8x8"])
    weight = next(value for value in subject.model.state_dict().values() if value.shape == (3, 144))
    assert bool((weight == 1.0).all())
    assert subject.sha256 == vetted


def test_the_rehearsal_leaves_nothing_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done in a copy of this process: values, threads and random numbers here stay as they are."""
    torch.save(small_net(), file)
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    seen: list[Any] = []
    assert rehearse.rehearse(lambda: seen.append(1) or torch.rand(2).tolist(), file_bytes=1)
    assert seen == []
    assert torch.equal(before, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_a_fault_of_ours_in_the_rehearsal_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        rehearse.rehearse(lambda: 1 / 0, file_bytes=1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the rehearsal is in this process")
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("inputs", [["1x6"], []], ids=["typed", "guessed"])
def test_what_was_rehearsed_is_not_run_again(
    file: Path, inputs: list[str], trust: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of this process ran these bytes on these inputs; a file that was not rehearsed runs here."""
    torch.save(nn.Sequential(nn.Linear(6, 4)), file)
    runs: list[Any] = []
    monkeypatch.setattr(load, "run_once", lambda *_: runs.append("here"))
    opened(file, inputs=inputs, trust_pickle=trust)
    assert runs == ["here"] * trust


def test_where_the_limits_of_posix_are_not_to_be_had_the_work_is_done_here() -> None:
    """As on Windows: there is no module ``resource``."""
    code = """
        import sys
        sys.modules["resource"] = None
        from slim_model.loading.rehearse import rehearse
        print(rehearse(lambda: 3, file_bytes=1))
        sys.platform = "win32"
        print(rehearse(lambda: 4, file_bytes=1))
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "4"]


def test_a_trusted_file_is_not_rehearsed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small_net(), file)
    monkeypatch.setattr(rehearse.os, "fork", lambda: pytest.fail("it was"))
    opened(file, inputs=INPUT, trust_pickle=True)


def test_only_weights_are_read_for_an_architecture(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own code runs once, and here."""
    calls = file.with_name("calls")
    source = NET_SOURCE.replace("super().__init__()", f"super().__init__(); open({str(calls)!r}, 'a').write('x')")
    file.with_name("net.py").write_text("\n".join(line[4:] for line in source.splitlines()))
    state = {name: torch.ones(shape) for name, shape in {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}.items()}
    state |= {"fc.weight": torch.ones(3, 144), "fc.bias": torch.ones(3)}
    torch.save(state, file)
    opened(file, inputs=INPUT, arch=f"{file.with_name('net.py')}:Net")
    assert calls.read_text() == "x"
