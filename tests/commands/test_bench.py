"""slim-model bench: what it makes of files, what it claims and refuses to claim. No test looks at real time."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from rich.console import Console
from torch import nn

from slim_model import cli
from slim_model.commands import bench as module
from slim_model.commands.bench import BenchJob, bench
from slim_model.errors import InputError
from slim_model.loading.model_file import open_artifact
from slim_model.loading.source import SourceOptions
from slim_model.measuring.energy_meter import METERS, Energy, Meter, measure_energy, rapl_meter
from slim_model.measuring.peak_memory import PeakMemory, measure_memory
from slim_model.measuring.runtimes import RUNTIMES, Operator, Runtime
from slim_model.measuring.timing import Comparison, Latency
from slim_model.reporting.bench_table import Bench, show_bench
from small_nets import Residual, images, trained

Dims = tuple[int | str | None, ...]


def onnx_file(path: Path, *inputs: tuple[str, Dims, int], weight: tuple[int, ...] = (4,)) -> Path:
    """The inputs, each added to a weight that broadcasts."""
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, weight, [1.0] * torch.Size(weight).numel())
    values = [onnx.helper.make_tensor_value_info(name, kind, dims) for name, dims, kind in inputs]
    nodes = [
        onnx.helper.make_node("Cast", [name], [f"{name}_f"], to=onnx.TensorProto.FLOAT) for name, _, _ in inputs
    ] + [onnx.helper.make_node("Add", [f"{name}_f", "w"], [f"{name}_out"]) for name, _, _ in inputs]
    outputs = [onnx.helper.make_tensor_value_info(f"{name}_out", 1, None) for name, _, _ in inputs]
    graph = onnx.helper.make_graph(nodes, "add", values, outputs, [tensor])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    dense = onnx_file(tmp_path / "dense.onnx", ("x", ("batch", 4), FLOAT))
    return dense, onnx_file(tmp_path / "slim.onnx", ("x", ("batch", 4), FLOAT))


# -- inputs from the file's own signature ---------------------------------------------------------------------------


def test_inputs_are_made_from_the_signature(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "a.onnx", ("x", ("n", 3, 4), FLOAT), ("tokens", ("n", 4), INT), ("y", (2, 4), FLOAT))
    opened = open_artifact(path, SourceOptions())
    assert opened.fixed_batch is None
    x, tokens, y = opened.example(5)
    assert (x.shape, tokens.shape, y.shape) == ((5, 3, 4), (5, 4), (2, 4))
    assert (x.dtype, tokens.dtype) == (torch.float32, torch.int64)
    assert set(tokens.unique().tolist()) == {0, 1}
    assert torch.equal(x, opened.example(5)[0]), "always alike"
    assert opened.dtype == "float32"


def test_an_open_size_needs_input(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "a.onnx", ("x", ("batch", "length", 4), FLOAT))
    with pytest.raises(InputError, match=r"input 'x' is batch x length x 4: the size of axis 1 is open\. Give --input"):
        open_artifact(path, SourceOptions()).shapes(1)
    assert open_artifact(path, SourceOptions(inputs=("1x7x4",))).shapes(3) == (((3, 7, 4), torch.float32),)
    for wrong in ("1x7x5", "1x7"):
        with pytest.raises(InputError, match=f"--input {wrong} does not fit it"):
            open_artifact(path, SourceOptions(inputs=(wrong,))).shapes(1)
    with pytest.raises(InputError, match="--input is given 2 times; the file has 1 inputs"):
        open_artifact(path, SourceOptions(inputs=("1x7x4", "1x7x4"))).shapes(1)


def test_a_symbol_of_the_batch_is_the_batch_wherever_it_stands(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "a.onnx", ("x", ("n", 4), FLOAT), ("y", (3, "n", 4), FLOAT))
    assert [shape for shape, _ in open_artifact(path, SourceOptions()).shapes(6)] == [(6, 4), (3, 6, 4)]


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    opened = open_artifact(onnx_file(tmp_path / "a.onnx", ("x", (2, 4), FLOAT)), SourceOptions())
    assert opened.fixed_batch == 2
    with pytest.raises(InputError, match=r"its batch size is fixed at 2\. Leave --batch out"):
        opened.shapes(8)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("missing.onnx", None, "there is no such file"),
        ("broken.onnx", "no protobuf at all", "cannot be read as an ONNX model"),
        ("broken.pt", "no model", "is no PyTorch model"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, says: str) -> None:
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: {says}"):
        open_artifact(tmp_path / name, SourceOptions())


def test_a_pytorch_file_is_loaded_safely_and_takes_any_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), path)
    opened = open_artifact(path, SourceOptions())
    assert (opened.kind, opened.dtype, opened.fixed_batch) == ("module", "float32", None)
    assert opened.shapes(7) == (((7, 6), torch.float32),)
    torch.save(Residual(), path)
    with pytest.raises(InputError, match="is refused"):
        open_artifact(path, SourceOptions())


@pytest.mark.parametrize("free", [True, False])
def test_an_exported_program_knows_its_batch(tmp_path: Path, *, free: bool) -> None:
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if free else {}
    program = torch.export.export(trained(Residual()), (images(2),), **shapes)  # type: ignore[arg-type]
    torch.export.save(program, tmp_path / "model.pt2")
    opened = open_artifact(tmp_path / "model.pt2", SourceOptions())
    assert opened.fixed_batch == (None if free else 2)
    batch = 5 if free else 2
    assert opened.runnable(*opened.example(batch)).shape == (batch, 5)


# -- a runtime of our own -------------------------------------------------------------------------------------------


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``timed(low, high)``: the second file is found to be so many times as fast as the first; memory is made up."""
    fake = Runtime(
        "fake",
        "cpu",
        "onnx",
        lambda: None,
        lambda *_: lambda: None,
        ("torch",),
        lambda files, *_: [OPERATORS for _ in files],
    )
    away = Runtime("away", "cpu", "onnx", lambda: "not installed: pip install away", fake.prepare, ())
    falls = Runtime("falls", "cpu", "onnx", lambda: None, _falls, ())
    for row in (fake, away, falls):
        monkeypatch.setitem(RUNTIMES, row.name, row)
    monkeypatch.setattr(module, "measure_memory", lambda *_, **__: PeakMemory(30_000_000, 20_000_000, None))
    monkeypatch.setattr(module, "measure_energy", lambda *_: Energy(0.25, "a meter"))

    def interval(low: float, high: float) -> None:
        def measured(row: Runtime, artifacts: Any, inputs: Any, *, threads: int, **_: Any) -> list[Comparison]:
            if row.name == "falls":
                row.prepare(artifacts, inputs, threads)
            first, other = (
                Latency(row.name, ms, 0.9 * ms, 1.1 * ms, threads, len(inputs[0]), "cpu", 9) for ms in (4.0, 2.0)
            )
            return [Comparison(row.name, first, first, 1.0, 1.0, 1.0), Comparison(row.name, first, other, 2, low, high)]

        monkeypatch.setattr(module, "measure", measured)

    return interval


OPERATORS = [Operator("Conv", 3, 1.5), Operator("Gemm", 1, 0.5)]


def _falls(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no kernel for Add(18)\nand more lines")


def said(found: Bench) -> str:
    console = Console(width=80, file=io.StringIO())
    show_bench(found, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def job(files: tuple[Path, ...], *runtimes: str, **options: Any) -> BenchJob:
    return BenchJob(files, runtimes or ("fake",), **options)


def run(todo: BenchJob) -> Bench:
    return bench(todo, lambda stage: None)


def test_a_row_says_all_it_depends_on(files: tuple[Path, Path], timed: Callable[..., None], tmp_path: Path) -> None:
    timed(1.8, 2.2)
    found = run(job(files, batches=(1, 8), threads=(1, 2), json=tmp_path / "rows.json", per_op=True))
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert rows == found.rows
    assert [(r["file"], r["batch"], r["threads"]) for r in rows] == [
        (file, batch, threads) for batch in (1, 8) for threads in (1, 2) for file in ("dense.onnx", "slim.onnx")
    ]
    dense, slim = rows[4:6]
    assert (dense["reference"], dense["speedup"], dense["verdict"]) == (None, None, None)
    assert (slim["reference"], slim["speedup"], slim["verdict"]) == ("dense.onnx", 2, "faster")
    assert (slim["median_ms"], slim["examples_per_s"]) == (2.0, 8 / 2e-3)
    assert (slim["inputs"], slim["dtype"], slim["device"]) == (["8x4"], "float32", "cpu")
    assert (slim["own_bytes"], slim["joules_per_run"], slim["energy_source"]) == (20_000_000, 0.25, "a meter")
    assert slim["operators"][0] == {"name": "Conv", "nodes": 3, "ms": 1.5}
    assert slim["runtime_version"] == torch.__version__.partition("+")[0]
    assert slim["environment"]["torch"] == torch.__version__
    assert slim["slim_model"]
    assert "commit" in slim
    assert len(slim["sha256"]) == 64


def test_what_is_printed_for_a_win(files: tuple[Path, Path], timed: Callable[..., None]) -> None:
    timed(1.8, 2.2)
    text = said(run(job(files, per_op=True)))
    assert "2.00x faster, 95 %: 1.80-2.20" in text
    assert "fake, batch 1, 1 thread" in text
    assert "4.00 ms (3.60-4.40)" in text
    assert "20 MB" in text
    assert "Conv" in text
    assert "75%" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("low", "high"), [(0.9, 2.2), (1.0, 2.2), (0.5, 1.0)])
def test_no_win_is_claimed_where_the_interval_holds_one(
    files: tuple[Path, Path], timed: Callable[..., None], low: float, high: float
) -> None:
    timed(low, high)
    found = run(job(files))
    assert found.rows[1]["verdict"] == "no difference shown"
    text = said(found)
    assert f"no difference shown, 95 %: {low:.2f}-{high:.2f}" in text
    assert "2.00x" not in text
    assert "faster" not in text


def test_a_slower_model_is_called_slower(files: tuple[Path, Path], timed: Callable[..., None]) -> None:
    timed(0.4, 0.6)
    assert "slower, 95 %: 0.40-0.60" in said(run(job(files)))


def test_absent_runtimes_are_listed_and_the_others_run(files: tuple[Path, Path], timed: Callable[..., None]) -> None:
    timed(1.8, 2.2)
    found = run(job(files, "away", "falls", "pytorch", "fake"))
    assert {row["runtime"] for row in found.rows} == {"fake"}
    assert found.absent == [
        ("away", "not installed: pip install away"),
        ("falls", f"failed at batch 1: RuntimeError: no kernel for Add(18) (at {__file__}:{_line()}: {RAISES})"),
        ("pytorch", "it runs a PyTorch file (.pt2, .pt), and none was given"),
    ]
    assert "away: not installed: pip install away" in said(found)


RAISES = 'raise RuntimeError("no kernel for Add(18)\\nand more lines")'


def _line() -> int:
    lines = Path(__file__).read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.strip() == RAISES)


def test_all_means_every_runtime_of_these_files(files: tuple[Path, Path], timed: Callable[..., None]) -> None:
    timed(1.8, 2.2)
    found = run(job(files, "all"))
    tried = {row["runtime"] for row in found.rows} | {name for name, _ in found.absent}
    assert tried == {name for name, row in RUNTIMES.items() if row.artifact == "onnx"}


def test_nothing_measured_is_an_error(files: tuple[Path, Path], timed: Callable[..., None]) -> None:
    timed(1.8, 2.2)
    with pytest.raises(InputError, match=r"nothing could be measured\. away: not installed: pip install away"):
        run(job(files, "away"))
    with pytest.raises(InputError, match="unknown runtime 'tvm'"):
        run(job(files, "tvm"))


def test_files_that_take_other_inputs_are_not_compared(tmp_path: Path, files: tuple[Path, Path]) -> None:
    other = onnx_file(tmp_path / "other.onnx", ("x", ("batch", 2, 4), FLOAT))
    with pytest.raises(InputError, match=r"dense\.onnx takes 1x4 and .*other\.onnx takes 1x2x4: they cannot be comp"):
        run(job((files[0], other), "onnxruntime"))


def test_a_process_that_falls_over_is_a_note(
    files: tuple[Path, Path], timed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(1.8, 2.2)
    monkeypatch.setattr(module, "measure_memory", _falls)
    found = run(job(files))
    assert found.rows[0]["peak_bytes"] is None
    assert found.notes[0].startswith("dense.onnx, fake: peak memory is not known: RuntimeError")
    assert "note: dense.onnx" in said(found)


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_runs_for_real(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_memory", lambda *_, **__: PeakMemory(30_000_000, 20_000_000, None))
    rows = tmp_path / "rows.json"
    options = ["--batch", "1,3", "--rounds", "2", "--seconds", "0.2", "--per-op", "--json", str(rows)]
    assert cli.run(["bench", *map(str, files), *options]) == 0
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["batch"] for row in found] == [1, 1, 3, 3]
    assert {row["runtime"] for row in found} == {"onnxruntime"}
    assert {operator["name"] for operator in found[0]["operators"]} == {"Add"}
    assert "dense.onnx" in capsys.readouterr().out


def test_the_command_lists_runtimes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.run(["bench", "--runtimes"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in RUNTIMES)
    assert "not installed: pip install openvino" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "bench needs files to time"),
        (("a.onnx",), "there is no such file"),
        (("a.onnx", "--batch", "1;2"), "--batch 1;2: it is one number or several with commas"),
        (("a.onnx", "--threads", "0"), "numbers from 1"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


# -- memory and energy ----------------------------------------------------------------------------------------------


def test_memory_is_that_of_the_model_alone(tmp_path: Path) -> None:
    """A weight of 40 MB is in the process that holds it, whatever else this one holds."""
    held = torch.ones(100_000_000)
    heavy = onnx_file(tmp_path / "heavy.onnx", ("x", ("batch", 4), FLOAT), weight=(2_500_000, 4))
    light = onnx_file(tmp_path / "light.onnx", ("x", ("batch", 4), FLOAT))
    heavy_bytes, light_bytes = (
        measure_memory("onnxruntime", path, SourceOptions(), batch=1, threads=1).own_bytes for path in (heavy, light)
    )
    assert 40e6 < heavy_bytes - light_bytes < held.numel() * held.element_size()


@pytest.fixture
def counters(tmp_path: Path) -> Callable[..., None]:
    """``counters(a, b)``: microjoules of two processor packages; a part of one is there too and must not count."""

    def write(*packages: int) -> None:
        for name, value in zip(("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"), (*packages, 5), strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "energy_uj").write_text(f"{value}\n")
            (tmp_path / name / "max_energy_range_uj").write_text("999\n")

    return write


def test_counters_of_all_packages_are_added_and_may_start_again(counters: Callable[..., None], tmp_path: Path) -> None:
    counters(100, 990)
    drawn = rapl_meter(tmp_path).start()
    counters(140, 10)  # 40 and, past 999, 20
    assert drawn() == pytest.approx(60e-6)


def test_joules_of_a_run() -> None:
    """6 joules in the three runs of two seconds; the run before the meter starts is not counted."""
    meter = Meter("a meter", "cpu", lambda: None, lambda: lambda: 6.0)
    now = [0]

    def run() -> None:
        now[0] += int(0.7e9)

    assert measure_energy(meter, lambda: run, clock=lambda: now[0]) == Energy(2.0, "a meter")


def test_no_meter_is_said_and_no_number_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_energy(rapl_meter(tmp_path), _falls) == Energy(
        None, "not available: this machine shows no RAPL counters"
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert measure_energy(METERS["cuda"], _falls) == Energy(None, "not available: PyTorch finds no CUDA device")


def test_counters_that_only_root_may_read(
    counters: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters(1, 2)

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert measure_energy(rapl_meter(tmp_path), _falls).source == (
        "not available: the RAPL counters cannot be read (Permission denied); root can"
    )
