"""What is told of a run: on the screen, in a log for people, in a log for machines; a log never decides how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command_runs import ARCH, QUICK, Command
from slim_model.progress import count_in_text
from small_nets import SHAPE

RUN = ("--arch", ARCH, "--input", SHAPE, *QUICK)


def test_events_are_json_a_line(command: Command, weights: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    ran = command(weights, out, *RUN, "--log-file", log, "--log-format", "json")
    assert ran.code == 0, ran.err
    events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    assert [json.loads(line) for line in ran.err.splitlines()] == events
    assert {event["event"] for event in events[:-1]} == {"stage"}
    assert events[-1]["event"] == "result"
    assert events[-1]["wrote"] == [str(out)]
    assert events[-1]["figures"]["macs"] > 0
    assert [event["seconds"] for event in events] == sorted(event["seconds"] for event in events)


def test_quiet_prints_errors_alone(command: Command, weights: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    ran = command(weights, out, *RUN, "--quiet", "--log-file", log)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert "] ranking channels" in log.read_text()
    ran = command(weights, out, *RUN, "--target", "macs=1", "--quiet", "--log-file", log, "--log-format", "json")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("error: ")
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("error", 3)
    assert last["message"] in " ".join(ran.err.split())


def test_a_log_that_cannot_be_written_is_told_before_any_work(command: Command, weights: Path, out: Path) -> None:
    ran = command(weights, out, *RUN, "--log-file", out.parent / "none" / "log.txt")
    assert (ran.code, ran.out) == (2, "")
    assert "cannot write the log" in ran.err
    before = weights.read_bytes()
    ran = command(weights, out, *RUN, "--log-file", weights)
    assert ran.code == 2
    assert "a file that the run reads or writes" in ran.err
    assert weights.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_a_full_disk_ends_the_log_and_not_the_run(command: Command, weights: Path, out: Path) -> None:
    ran = command(weights, out, *RUN, "--log-file", "/dev/full")
    assert ran.code == 0, ran.err
    assert "is written no more: No space left on device" in " ".join(ran.err.split())


def test_counts_say_what_is_left() -> None:
    told: list[str] = []
    count = count_in_text(told.append, "fitting layers", every_s=0)
    for done in (1, 2, 4):
        count(done, 4)
    assert [line.partition(" of 4")[0].rpartition("] ")[2] for line in told] == ["1", "2", "4"]
    assert ["s left" in line for line in told] == [True, True, False]
    assert all(line.startswith("fitting layers [") for line in told)
