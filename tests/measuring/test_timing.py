"""measure: pairs, medians and intervals on a clock of our own; no test looks at real time."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from slim_model.errors import InputError
from slim_model.measuring import machine
from slim_model.measuring import timing as measure
from slim_model.measuring.machine import cpu_flags, environment, vector_width_channels
from slim_model.measuring.runtimes import RUNTIMES, Runtime, with_onnxruntime
from slim_model.measuring.runtimes.row import Operator
from slim_model.measuring.timing import compare, interleave, paired_ratio, warm_up

MS = 1_000_000


class FakeClock:
    """Stands still but for ``run``, which takes what its durations say; ``log`` holds who ran."""

    def __init__(self) -> None:
        self.now = 0
        self.log = ""

    def __call__(self) -> int:
        return self.now

    def run(self, name: str, durations: Callable[[], float]) -> Callable[[], None]:
        def closure() -> None:
            self.now += int(durations() * MS)
            self.log += name

        return closure


def always(value: float) -> Callable[[], float]:
    return lambda: value


def sequence(values: Sequence[float]) -> Callable[[], float]:
    rest: Iterator[float] = iter(values)
    return lambda: next(rest)


def fake_runtime(clock: FakeClock, reason: str | None = None) -> Runtime:
    """Artifacts are (name, durations)."""
    return Runtime("fake", "cpu", "module", lambda: reason, lambda artifact, *_: clock.run(*artifact), ())


def test_order_alternates() -> None:
    clock = FakeClock()
    interleave(clock.run("d", always(10)), clock.run("s", always(10)), rounds=4, budget_s=1, clock=clock)
    warm = "d" * 6 + "s" * 6
    # each sample is one untimed run and one timed run
    assert clock.log == warm + "ddss" + "ssdd" + "ddss" + "ssdd"


def test_each_turn_begins_untimed() -> None:
    """What a model takes until its caches are its own again is no part of its latency."""
    clock = FakeClock()

    def slow_at_first(name: str) -> Callable[[], None]:
        return clock.run(name, lambda: 4 if len(clock.log) - len(clock.log.rstrip(name)) < 3 else 2)

    found = interleave(slow_at_first("d"), slow_at_first("s"), rounds=3, budget_s=1, clock=clock)
    assert found == ([2.0] * 3, [2.0] * 3)


def test_a_model_alone_has_nothing_to_wait_for() -> None:
    clock = FakeClock()
    interleave(clock.run("d", always(2)), rounds=3, budget_s=1, clock=clock)
    assert clock.log == "d" * 6 + "dd" * 3


def test_short_runs_are_repeated_until_a_sample_lasts_a_millisecond() -> None:
    clock = FakeClock()
    dense_ms, slim_ms = interleave(
        clock.run("d", always(0.25)), clock.run("s", always(0.5)), rounds=1, budget_s=1, clock=clock
    )
    assert clock.log == "d" * 6 + "s" * 6 + "d" * (40 + 4) + "s" * (20 + 2)
    assert (dense_ms, slim_ms) == ([0.25], [0.5])


def test_what_interrupts_each_so_often_changes_no_ratio() -> None:
    """On a busy machine others take 30 ms, once in 4 ms of work. Of two runs the longer one would be interrupted in
    most of its samples, and the shorter one in few."""
    clock, draw = FakeClock(), np.random.default_rng(0)

    def interrupted(name: str, taken: float) -> Callable[[], None]:
        return clock.run(name, lambda: taken + 30 * draw.poisson(taken / 4))

    found = interleave(interrupted("d", 4), interrupted("s", 1), rounds=200, budget_s=100, clock=clock)
    assert 3 < paired_ratio(*found)[0] < 5


def test_runs_too_short_for_the_clock_still_end() -> None:
    clock = FakeClock()
    interleave(clock.run("d", always(0)), clock.run("s", always(1)), rounds=1, budget_s=1, clock=clock)
    assert clock.log.count("d") == 6 + 1000 + 1000


def test_budget_ends_the_rounds_but_not_before_the_least_number() -> None:
    clock = FakeClock()
    dense_ms, _ = interleave(
        clock.run("d", always(100)), clock.run("s", always(100)), rounds=1000, budget_s=4, clock=clock
    )
    # 12 warm-up runs are 1.2 s, a round is 4 runs or 0.4 s: after 7 rounds 4 s are reached
    assert len(dense_ms) == 7
    clock = FakeClock()
    dense_ms, _ = interleave(
        clock.run("d", always(100)), clock.run("s", always(100)), rounds=1000, budget_s=0.01, clock=clock
    )
    assert len(dense_ms) == measure.MIN_ROUNDS


def test_warm_up_waits_for_the_steady_state() -> None:
    clock = FakeClock()
    falling = [64, 32, 16, 8, 4, 2, 1, 1, 1, 1, 1, 1]
    assert warm_up(clock.run("d", sequence(falling)), clock, limit_ns=10**12) == 1 * MS
    assert len(clock.log) == 10  # of the last three, none undercuts the 1 that came before them


def test_warm_up_gives_up_at_its_limit() -> None:
    clock = FakeClock()
    warm_up(clock.run("d", always(700)), clock, limit_ns=1000 * MS)
    assert clock.log == "dd"


def test_medians_and_percentiles() -> None:
    clock = FakeClock()
    warm, untimed = [20.0] * 6, 20.0
    timed = [20.0, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40]
    durations = warm + [value for sample in timed for value in (untimed, sample)]
    found = compare(
        fake_runtime(clock),
        ("d", sequence(durations)),
        ("s", always(10)),
        [torch.zeros(3, 1)],
        threads=2,
        rounds=11,
        clock=clock,
    )
    assert dataclasses.asdict(found.dense) == {
        "runtime": "fake",
        "median_ms": 30.0,
        "p10_ms": 22.0,
        "p90_ms": 38.0,
        "threads": 2,
        "batch": 3,
        "device": "cpu",
        "rounds": 11,
    }
    assert found.slim.median_ms == found.slim.p90_ms == 10.0
    assert found.speedup == 3.0
    assert 2.0 <= found.speedup_low < 3.0 < found.speedup_high <= 4.0


def test_a_machine_that_slows_down_does_not_change_the_paired_ratio() -> None:
    dense_ms = [2.0 * drift for drift in range(1, 30)]
    slim_ms = [1.0 * drift for drift in range(1, 30)]
    assert paired_ratio(dense_ms, slim_ms) == (2.0, 2.0, 2.0)


def test_interval_of_three_ratios_by_hand() -> None:
    # The median of 3 draws from {1, 2, 3} is 1 with probability 3 * 1/9 * 2/3 + 1/27 = 7/27 > 2.5 %; so is 3.
    assert paired_ratio([1, 2, 3], [1, 1, 1]) == (2.0, 1.0, 3.0)


def test_interval_is_always_alike_and_narrows_with_more_rounds() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).mul(0.1).exp().tolist()
    few, many = paired_ratio(noise[:20], [0.5] * 20), paired_ratio(noise, [0.5] * 400)
    assert many == paired_ratio(noise, [0.5] * 400)
    assert many[1] < 2.0 < many[2]
    assert many[2] - many[1] < few[2] - few[1]


def test_unknown_runtime_names_the_choices() -> None:
    with pytest.raises(InputError, match=r"unknown runtime 'tvm': choose from onnxruntime, .*pytorch"):
        compare("tvm", None, None, [])


def test_missing_runtime_says_why() -> None:
    with pytest.raises(InputError, match=r"cannot measure with 'fake': not installed\. Usable here: .*pytorch"):
        compare(fake_runtime(FakeClock(), reason="not installed"), None, None, [])


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"rounds": 0}])
def test_counts_start_at_one(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="both start at 1"):
        compare("pytorch", None, None, [], **wrong)  # type: ignore[arg-type]


def test_missing_onnxruntime_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert RUNTIMES["onnxruntime"].available() == "not installed: pip install onnxruntime"
    assert RUNTIMES["onnxruntime-cuda"].available() == "not installed: pip install onnxruntime-gpu"
    assert RUNTIMES["openvino"].available() == "not installed: pip install openvino"


@pytest.mark.parametrize(
    ("version", "entry"),
    [("1.25.1", "force_spinning_stop"), ("1.26.0", "spin_duration_us"), ("2.0", "spin_duration_us")],
)
def test_threads_do_not_spin_into_the_turn_of_another_model(version: str, entry: str) -> None:
    assert with_onnxruntime._asleep_soon(version)[0].endswith(entry)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One tiny model of four numbers in each form a runtime takes."""
    ones = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [4], [1.0] * 4)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "add", [x], [y], [ones])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path_factory.mktemp("measure") / "add.onnx"
    onnx.save(model, path)
    return {"onnx": path, "module": nn.Linear(4, 4).eval()}


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_row_runs_or_says_why_not(name: str, artifacts: dict[str, Any]) -> None:
    row = RUNTIMES[name]
    assert row.name == name
    reason = row.available()
    if reason is not None:
        assert len(reason) > 10
        pytest.skip(reason)
    artifact = artifacts[row.artifact]
    found = compare(name, artifact, artifact, [torch.zeros(2, 4)], rounds=3, budget_s=0.5)
    assert (found.dense.runtime, found.dense.batch, found.dense.device) == (name, 2, row.device)
    assert found.slim.rounds == 3
    assert found.speedup_low <= found.speedup <= found.speedup_high
    json.dumps(dataclasses.asdict(found))


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_prepared_closure_runs_the_artifact_on_the_inputs(name: str, artifacts: dict[str, Any]) -> None:
    """Inputs of a wrong shape reach the artifact, and it refuses them."""
    row = RUNTIMES[name]
    if (reason := row.available()) is not None:
        pytest.skip(reason)
    row.prepare(artifacts[row.artifact], [torch.zeros(2, 4)], 1)()
    with pytest.raises(Exception, match=r"(?i)shape|dim"):
        row.prepare(artifacts[row.artifact], [torch.zeros(2, 5)], 1)()


def test_operators_of_all_files_are_profiled_in_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = []

    class Session:
        def __init__(self, name: str, *_: Any) -> None:
            self.name = name

        def get_inputs(self) -> list[Any]:
            return []

        def run(self, *_: Any) -> None:
            log.append(self.name)

        def end_profiling(self) -> str:
            taken = {"cat": "Node", "name": "c_kernel_time", "dur": 2000, "args": {"op_name": f"Conv of {self.name}"}}
            (tmp_path / self.name).write_text(json.dumps([taken]))
            return str(tmp_path / self.name)

    monkeypatch.setattr(with_onnxruntime, "_session", Session)
    profile = RUNTIMES["onnxruntime"].per_op
    assert profile is not None
    assert profile(["d", "s"], [], 1) == [[Operator("Conv of d", 1, 2.0)], [Operator("Conv of s", 1, 2.0)]]
    assert log == ["d", "s"] * (len(log) // 2)


def test_threads_and_garbage_collection_are_put_back(artifacts: dict[str, Any]) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []

    def spy(*_: torch.Tensor) -> None:
        seen.append((torch.get_num_threads(), gc.isenabled()))

    compare("pytorch", spy, artifacts["module"], [torch.zeros(1, 4)], threads=before + 1, rounds=1, budget_s=0.1)
    assert set(seen) == {(before + 1, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)

    def fail(*_: torch.Tensor) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compare("pytorch", fail, artifacts["module"], [torch.zeros(1, 4)], threads=before + 1)
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


def test_the_model_is_left_as_it_was(artifacts: dict[str, Any]) -> None:
    module = artifacts["module"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    compare("pytorch", module, module, [torch.zeros(1, 4)], rounds=1, budget_s=0.1)
    assert not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_environment_says_what_ran_and_not_where() -> None:
    found = environment()
    json.dumps(found)
    assert found["cpu"]
    assert found["torch"] == torch.__version__
    assert found["onnx"] == onnx.__version__
    assert found["logical_cores"] >= 1
    assert str(Path.home()) not in json.dumps(found)


ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp{more}
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c
"""


@pytest.mark.parametrize(
    ("more", "found"), [("", ["dot product"]), (" sve i8mm bf16", ["I8MM", "dot product"])], ids=["N1", "V1"]
)
def test_an_arm_processor_is_read(monkeypatch: pytest.MonkeyPatch, more: str, found: list[str]) -> None:
    """As Linux tells of one; its latencies are those of no other processor."""
    read = Path.read_text
    told = {"/proc/cpuinfo": ARM.format(more=more)}
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: told.get(str(self)) or read(self, *a, **k))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    for name in ("machine", "processor"):
        monkeypatch.setattr(f"platform.{name}", lambda: "aarch64")
    said = environment()
    assert said["instruction_set"] == "NEON"
    assert said["int8_instructions"] == found
    assert said["cpu"] == "aarch64, implementer 0x41, part 0xd0c"
    assert {"asimddp", *more.split()} <= set(cpu_flags())


def test_a_mac_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"machdep.cpu.brand_string": "Apple M1", "hw.optional.arm.FEAT_DotProd": "1"}
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(machine, "_cpuinfo", lambda *_: [])
    monkeypatch.setattr(machine, "_sysctl", lambda name: answers.get(name, ""))
    said = environment()
    assert (said["cpu"], said["instruction_set"], said["int8_instructions"]) == ("Apple M1", "NEON", ["dot product"])


@pytest.mark.parametrize(
    ("capability", "machine", "width"),
    [
        ("AVX512", "x86_64", 16),
        ("AVX2", "x86_64", 8),
        ("DEFAULT", "aarch64", 4),
        ("DEFAULT", "arm64", 4),
        ("SVE256", "aarch64", 8),
        ("DEFAULT", "x86_64", 8),
    ],
)
def test_vector_width(monkeypatch: pytest.MonkeyPatch, capability: str, machine: str, width: int) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert vector_width_channels("cpu") == width
    assert vector_width_channels("cuda:1") == 8
