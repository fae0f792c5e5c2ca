"""The command line: ``slim-model IN OUT.onnx`` and ``slim-model explain IN``. Options are the fields of Recipe; nothing
is decided here."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import typer
from rich.console import Console
from rich.text import Text

from slim_model.criteria import CRITERIA
from slim_model.engines import ENGINES
from slim_model.errors import InputError, SlimError
from slim_model.heads import ATTENTION
from slim_model.runtimes import RUNTIMES
from slim_model.slim import Recipe
from slim_model.specs import SPECS


class _SlimByDefault(typer.core.TyperGroup):
    """``slim-model IN OUT`` means ``slim-model slim IN OUT``, and its help is the help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args[:1] and args[0] in self.commands
        return super().parse_args(ctx, args if named else ["slim", *args])


app = typer.Typer(
    cls=_SlimByDefault,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ACROSS = "Model in, model out"
_CHOICE = "What is removed"
_DATA = "Data to rank by"
_MEASURE = "Measuring and reporting"
_IN = "Model in"
_SHOW = "What is shown"


@app.command(
    name="slim",
    epilog="Other commands: explain IN says which channels go together, and what the others wait for; "
    "bench A.onnx B.onnx times files; profile IN measures layers.",
)
def slim_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A module, state dict, checkpoint, .safetensors, .pt2 or TorchScript file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Appears only when every check has passed.")],
    ratio: Annotated[float, typer.Option(help="Fraction of channels removed.", rich_help_panel=_CHOICE)] = 0.5,
    criterion: Annotated[str, typer.Option(metavar="NAME[:OPTION=VALUE,...]", help=f"How channels are ranked: {', '.join(CRITERIA)}.", rich_help_panel=_CHOICE)] = "l1",
    scope: Annotated[str, typer.Option(help="local: the ratio in every layer; global: one ranking over all.", rich_help_panel=_CHOICE)] = "local",
    multiple_of: Annotated[str, typer.Option(metavar="auto|N", help="Round widths to N; auto: the block of this machine's kernels.", rich_help_panel=_CHOICE)] = "auto",
    keep: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Layers to leave alone, such as 'layer1.*' (repeat).", rich_help_panel=_CHOICE)] = None,
    attention: Annotated[str, typer.Option(metavar="|".join(ATTENTION), help="What goes of attention: places in every head, whole heads, or both.", rich_help_panel=_CHOICE)] = "width",
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES), help="Whose pruner turns the ranking into channels.", rich_help_panel=_CHOICE)] = "slim",
    seed: Annotated[int, typer.Option(help="For whatever is random.", rich_help_panel=_CHOICE)] = 0,
    data: Annotated[str | None, typer.Option(metavar="SPEC", help=f"Samples for criteria that need some: {', '.join(f'{kind}:PLACE' for kind in SPECS)}, or package.module:callable.", rich_help_panel=_DATA)] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them are read.", rich_help_panel=_DATA)] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="How many at a time.", rich_help_panel=_DATA)] = 64,
    mean: Annotated[str | None, typer.Option(metavar="X,...", help="Taken from the input, one number or one per channel.", rich_help_panel=_DATA)] = None,
    std: Annotated[str | None, typer.Option(metavar="X,...", help="The input is divided by it.", rich_help_panel=_DATA)] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict: torchvision:NAME, timm:NAME, file.py:callable, package.module:callable.", rich_help_panel=_ACROSS)] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).", rich_help_panel=_ACROSS)] = None,
    save: Annotated[Path | None, typer.Option(metavar="S", help="Also the small PyTorch model: .pt2, .safetensors or .pt.", rich_help_panel=_ACROSS)] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; default: the exporter's.", rich_help_panel=_ACROSS)] = None,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch size at that of --input.", rich_help_panel=_ACROSS)] = False,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.", rich_help_panel=_ACROSS)] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.", rich_help_panel=_ACROSS)] = None,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Everything that was done, for machines.", rich_help_panel=_MEASURE)] = None,
    bench: Annotated[bool, typer.Option(help="Measure latency, dense and slim in turns.", rich_help_panel=_MEASURE)] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the measured runs.", rich_help_panel=_MEASURE)] = 1,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where latency is measured.", rich_help_panel=_MEASURE)] = "cpu",
) -> None:  # fmt: skip
    """Remove the least important channels of a trained model, prove the result, write it as ONNX and measure it."""
    from slim_model.run import Job, run

    recipe = Recipe(
        ratio=ratio,
        criterion=criterion,
        scope=cast(Literal["local", "global"], scope),
        multiple_of=_multiple_of(multiple_of),
        keep=tuple(keep or ()),
        seed=seed,
        static_batch=static_batch,
        device=_device(device),
        data=data,
        samples=samples,
        batch=batch,
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        engine=cast(Literal["slim", "torch-pruning"], engine),
        attention=cast(Literal["width", "heads", "both"], attention),
    )
    console = Console(stderr=False)
    job = Job(
        *(source, target, recipe, arch, tuple(inputs or ()), trust_pickle, code),
        *(save, report, opset, bench, threads),
    )
    with _status(console) as progress:
        result = run(job, progress)
    from slim_model.report import show

    show(result, console)
    console.print(Text(f"wrote {target}" + (f", {save}" if save else "") + (f", {report}" if report else "")))


@app.command(name="bench")
def bench_command(
    files: Annotated[list[Path] | None, typer.Argument(metavar="A [B ...]", help="Models to compare: .onnx, or .pt2, .pt and what else the main command reads. The first of a kind is what the others are compared with.")] = None,
    runtime: Annotated[list[str] | None, typer.Option(metavar="NAME", help=f"What runs them (repeat): all, {', '.join(RUNTIMES)}. Default: onnxruntime, or pytorch.")] = None,
    runtimes: Annotated[bool, typer.Option("--runtimes", help="List the runtimes, and what is missing for each.")] = False,
    batch: Annotated[str | None, typer.Option(metavar="N,...", help="Examples in a run. Default: 1, or what the file fixes.")] = None,
    threads: Annotated[str, typer.Option(metavar="N,...", help="Threads of the measured runs.")] = "1",
    per_op: Annotated[bool, typer.Option("--per-op", help="Also what each kind of operator takes.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="At most so many samples of each model.")] = 60,
    seconds: Annotated[float, typer.Option(help="At most so long for a runtime, batch and number of threads.")] = 10.0,
    json: Annotated[Path | None, typer.Option(metavar="F", help="Write the rows, one JSON object a line.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Sizes of an input that the file leaves open (one per input).")] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside the files. Only for files you made.")] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.")] = None,
) -> None:  # fmt: skip
    """Time models against each other, in turns, in every runtime you name."""
    from slim_model.artifact import Loading
    from slim_model.bench import BenchJob, bench, list_runtimes, show_bench

    console = Console()
    if runtimes:
        list_runtimes(console)
        return
    if not files:
        raise InputError("bench needs files to time: slim-model bench dense.onnx slim.onnx.")
    loading = Loading(tuple(inputs or ()), arch, trust_pickle, code)
    sizes = _counts("--batch", batch), _counts("--threads", threads)
    job = BenchJob(tuple(files), tuple(runtime or ()), *sizes, loading, per_op, rounds, seconds, json)
    with _status(console) as progress:
        found = bench(job, progress)
    show_bench(found, console)


@app.command(name="profile")
def profile_command(
    source: Annotated[Path | None, typer.Argument(metavar="[IN]", help="The model whose layers are timed. Without it only the width step is learned.")] = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(RUNTIMES)}.")] = "onnxruntime",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the measured runs.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Examples in a run.")] = 1,
    dtype: Annotated[str, typer.Option(metavar="float32|float16", help="Of weights and inputs.")] = "float32",
    cache: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the table lies. Default: the folder for caches of this system.")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).")] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.")] = None,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.")] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.")] = None,
) -> None:  # fmt: skip
    """Measure what each layer takes at many widths on this machine, and which widths suit it.

    Stopped, it goes on where it was. --multiple-of auto uses the width step from then on.
    """
    from slim_model.artifact import Loading
    from slim_model.learn import ProfileJob, learn, show_learned

    console = Console()
    job = ProfileJob(
        source, runtime, threads, batch, dtype, cache, Loading(tuple(inputs or ()), arch, trust_pickle, code)
    )
    with _status(console) as progress:
        learned = learn(job, progress)
    show_learned(learned, console)


def _counts(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} {text}: it is one number or several with commas between, such as 1,8,64.") from None


def _multiple_of(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--multiple-of {text}: it is 'auto' or a whole number, such as 8.") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f"{option} {text}: it is one number or one per channel, such as 0.485,0.456,0.406.") from None


def _device(text: str) -> Literal["cpu", "cuda"]:
    if text not in ("cpu", "cuda"):
        raise InputError(f"--device {text}: it is 'cpu' or 'cuda'.")
    if text == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here. Leave the option out to measure on the CPU.")
    return cast(Literal["cpu", "cuda"], text)


@app.command(name="explain")
def explain_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A model, as for slim-model IN OUT.onnx.")],
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Only what touches these layers: a name, its beginning (layer3) or a glob.", rich_help_panel=_SHOW)] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Everything, for machines.", rich_help_panel=_SHOW)] = None,
    as_dot: Annotated[Path | None, typer.Option("--dot", metavar="F", help="The coupling as graphviz text.", rich_help_panel=_SHOW)] = None,
    as_svg: Annotated[Path | None, typer.Option("--svg", metavar="F", help="The coupling as a picture.", rich_help_panel=_SHOW)] = None,
    keep: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="As if these layers were left alone (repeat).", rich_help_panel=_CHOICE)] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict.", rich_help_panel=_IN)] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).", rich_help_panel=_IN)] = None,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch size at that of --input.", rich_help_panel=_IN)] = False,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.", rich_help_panel=_IN)] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.", rich_help_panel=_IN)] = None,
) -> None:  # fmt: skip
    """Say which channels go together and why, what cannot go, and what would free it. Nothing is removed."""
    from slim_model import draw
    from slim_model.run import Question, answer, publish

    question = Question(source, tuple(keep or ()), arch, tuple(inputs or ()), static_batch, trust_pickle, code)
    drawn = [
        (place, render)
        for place, render in ((as_json, draw.json_text), (as_dot, draw.dot), (as_svg, draw.svg))
        if place
    ]
    with _status(Console()) as progress:
        explanation = answer(question, [place for place, _ in drawn], progress)
    shown = explanation.about(layer) if layer else explanation
    for place, render in drawn:
        publish(place, render(shown))
    sys.stdout.write(draw.text(shown) + "\n")


class _status:
    """Says what is being done: a spinner on a terminal, one line a stage elsewhere."""

    def __init__(self, console: Console) -> None:
        self.errors = Console(file=sys.stderr)  # the stream of now: stages silence what PyTorch prints there
        self.spinner = self.errors.status("starting") if self.errors.is_terminal else None

    def __enter__(self) -> Callable[[str], None]:
        self.started = time.perf_counter()
        if self.spinner:
            self.spinner.start()
        return self._say

    def _say(self, stage: str) -> None:
        if self.spinner:
            self.spinner.update(stage)
        else:
            self.errors.print(Text(f"[{time.perf_counter() - self.started:5.1f} s] {stage}", style="dim"))

    def __exit__(self, *_: Any) -> None:
        if self.spinner:
            self.spinner.stop()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs the command and turns every exception into one message and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="replace")  # a terminal without '…' is no reason to fail
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    errors = Console(stderr=True, soft_wrap=True)
    command = typer.main.get_command(app)
    try:
        result = command.main(args=arguments, prog_name="slim-model", standalone_mode=False)
        return _interrupted(errors) if result == 130 else int(result or 0)  # typer makes 130 of Ctrl-C
    except SlimError as error:
        errors.print(Text("error: ", style="bold red") + Text(str(error)))
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted(errors)
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        return _unexpected(error, errors)


def _interrupted(errors: Console) -> int:
    errors.print(Text("interrupted: OUT.onnx is either whole and checked, or as it was"))
    return 130


def _unexpected(error: Exception, errors: Console) -> int:
    if hasattr(error, "format_message"):  # a usage error of the option parser
        errors.print(Text("error: ", style="bold red") + Text(error.format_message()))
        errors.print(Text("See slim-model --help."))
        return 2
    if os.environ.get("SLIM_MODEL_DEBUG"):
        traceback.print_exc()
    first = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
    errors.print(Text("error: ", style="bold red") + Text(f"slim-model failed: {first}"))
    errors.print(Text("This is a fault of slim-model, and OUT.onnx is as it was. Please report it with the output of "
                      "the same command after 'export SLIM_MODEL_DEBUG=1'."))  # fmt: skip
    return 1
