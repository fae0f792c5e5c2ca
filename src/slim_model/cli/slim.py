"""``slim-model IN OUT.onnx``. Options are the fields of Recipe and Job; nothing is decided here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console
from rich.text import Text

from slim_model.budget.engines import ENGINES
from slim_model.budget.methods import ALLOCATIONS
from slim_model.cli.options import ACROSS, CHOICE, DATA, MEASURE, TRAIN, device_of, numbers, status
from slim_model.cost.prices import PRICES
from slim_model.coupling.attention_heads import ATTENTION
from slim_model.data.augmentation import AUGMENT
from slim_model.data.sources import SPECS
from slim_model.errors import InputError
from slim_model.ranking.criteria import CRITERIA
from slim_model.recipe import Recipe
from slim_model.recovery import LEVELS
from slim_model.training.optimizers import OPTIMIZERS
from slim_model.training.options import PRECISIONS


def slim_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A module, state dict, checkpoint, .safetensors, .pt2 or TorchScript file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="Appears only when every check has passed.")],
    ratio: Annotated[float, typer.Option(help="Fraction removed: of the channels, or of what --of names.", rich_help_panel=CHOICE)] = 0.5,
    of: Annotated[str, typer.Option(metavar="|".join(PRICES), help="What --ratio is a fraction of.", rich_help_panel=CHOICE)] = "channels",
    limit: Annotated[str | None, typer.Option("--target", metavar="NAME=AMOUNT", help="A limit in place of --ratio: latency=8ms, macs=1.0G, params=2M, bytes=5MB, ...", rich_help_panel=CHOICE)] = None,
    allocate: Annotated[str | None, typer.Option(metavar="NAME[:OPTION=VALUE,...]", help=f"Which layers give how much: {', '.join(ALLOCATIONS)}. Default: uniform, or global with --scope global.", rich_help_panel=CHOICE)] = None,
    scan: Annotated[Path | None, typer.Option(metavar="F.jsonl", help="With --allocate sensitivity: where its scan is kept, to go on with or use again.", rich_help_panel=CHOICE)] = None,
    criterion: Annotated[str, typer.Option(metavar="NAME[:OPTION=VALUE,...]", help=f"How channels are ranked: {', '.join(CRITERIA)}.", rich_help_panel=CHOICE)] = "l1",
    scope: Annotated[str, typer.Option(help="local: the ratio in every layer; global: one ranking over all.", rich_help_panel=CHOICE)] = "local",
    multiple_of: Annotated[str, typer.Option(metavar="auto|N", help="Round widths to N; auto: the block of this machine's kernels.", rich_help_panel=CHOICE)] = "auto",
    keep: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Layers to leave alone, such as 'layer1.*' (repeat).", rich_help_panel=CHOICE)] = None,
    attention: Annotated[str, typer.Option(metavar="|".join(ATTENTION), help="What goes of attention: places in every head, whole heads, or both.", rich_help_panel=CHOICE)] = "width",
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES), help="Whose pruner turns the ranking into channels.", rich_help_panel=CHOICE)] = "slim",
    seed: Annotated[int, typer.Option(help="For whatever is random.", rich_help_panel=CHOICE)] = 0,
    data: Annotated[str | None, typer.Option(metavar="SPEC", help=f"Samples for criteria that need some: {', '.join(f'{kind}:PLACE' for kind in SPECS)}, or package.module:callable.", rich_help_panel=DATA)] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them are read.", rich_help_panel=DATA)] = 1024,
    test_samples: Annotated[int, typer.Option(min=1, help="Of its test part, how many accuracy is read from.", rich_help_panel=DATA)] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="How many at a time.", rich_help_panel=DATA)] = 64,
    mean: Annotated[str | None, typer.Option(metavar="X,...", help="Taken from the input, one number or one per channel.", rich_help_panel=DATA)] = None,
    std: Annotated[str | None, typer.Option(metavar="X,...", help="The input is divided by it.", rich_help_panel=DATA)] = None,
    recover: Annotated[str | None, typer.Option(metavar="|".join(LEVELS), help="Make up for what was removed by other weights, without labels; default: affine where there is data.", rich_help_panel=DATA)] = None,
    recalibrate: Annotated[bool, typer.Option(help="Then count BatchNorm's statistics anew.", rich_help_panel=DATA)] = False,
    finetune: Annotated[int, typer.Option(metavar="EPOCHS", min=0, help="Train the small model on --data, with the dense one as teacher.", rich_help_panel=TRAIN)] = 0,
    iterations: Annotated[int, typer.Option(metavar="K", min=1, help="Rounds: in each a part of the ratio goes, and the rest is trained.", rich_help_panel=TRAIN)] = 1,
    optimizer: Annotated[str, typer.Option(metavar="|".join(OPTIMIZERS), help="auto: sgd where there is BatchNorm, else adamw.", rich_help_panel=TRAIN)] = "auto",
    lr: Annotated[float | None, typer.Option(metavar="X", help="The highest rate. Default: 0.01 for sgd, 0.001 for adamw.", rich_help_panel=TRAIN)] = None,
    augment: Annotated[str, typer.Option(metavar="|".join(AUGMENT), help="How pictures are varied, several joined by +; auto: crop+flip where they are in colour. cutmix takes --alpha 1.", rich_help_panel=TRAIN)] = "auto",
    distill: Annotated[bool, typer.Option(help="Learn from the dense model too; without labels from it alone.", rich_help_panel=TRAIN)] = True,
    alpha: Annotated[float, typer.Option(metavar="A", help="How much the dense model says against labels: 0 to 1.", rich_help_panel=TRAIN)] = 0.5,
    temperature: Annotated[float, typer.Option(metavar="T", help="How soft it says it.", rich_help_panel=TRAIN)] = 2.0,
    hints: Annotated[float, typer.Option(metavar="W", min=0, help="How much more its values inside count, such as 10.", rich_help_panel=TRAIN)] = 0.0,
    dropout: Annotated[float, typer.Option(metavar="S", help="How much of the model's own dropout stays: 0 to 1.", rich_help_panel=TRAIN)] = 1.0,
    precision: Annotated[str, typer.Option(metavar="|".join(PRECISIONS), help="auto: bf16 where this machine computes in it.", rich_help_panel=TRAIN)] = "auto",
    max_drop: Annotated[float | None, typer.Option(metavar="X", help="Exit code 3, and no OUT, where more accuracy than that is lost; 0.01 is one point.", rich_help_panel=TRAIN)] = None,
    arch: Annotated[str | None, typer.Option(metavar="SPEC", help="Builds the model of a state dict: torchvision:NAME, timm:NAME, file.py:callable, package.module:callable.", rich_help_panel=ACROSS)] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", metavar="1x3x224x224[:dtype]", help="Example input, where it cannot be known (one per input).", rich_help_panel=ACROSS)] = None,
    save: Annotated[Path | None, typer.Option(metavar="S", help="Also the small PyTorch model: .pt2, .safetensors or .pt.", rich_help_panel=ACROSS)] = None,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; default: the exporter's.", rich_help_panel=ACROSS)] = None,
    static_batch: Annotated[bool, typer.Option("--static-batch", help="Fix the batch size at that of --input.", rich_help_panel=ACROSS)] = False,
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside IN. Only for files you made.", rich_help_panel=ACROSS)] = False,
    code: Annotated[Path | None, typer.Option(metavar="FILE.py", help="With --trust-pickle: the script that defines the model's class.", rich_help_panel=ACROSS)] = None,
    report: Annotated[Path | None, typer.Option(metavar="R.json", help="Everything that was done, for machines.", rich_help_panel=MEASURE)] = None,
    bench: Annotated[bool, typer.Option(help="Measure latency, dense and slim in turns.", rich_help_panel=MEASURE)] = True,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the measured runs.", rich_help_panel=MEASURE)] = 1,
    min_speedup: Annotated[float | None, typer.Option(metavar="X", help="Exit code 3, and no OUT, where it is not that much faster in onnxruntime (lower end of the interval).", rich_help_panel=MEASURE)] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where latency is measured, and the model trained.", rich_help_panel=MEASURE)] = "cpu",
) -> None:  # fmt: skip
    """Remove the least important channels of a trained model, prove the result, write it as ONNX and measure it."""
    from slim_model.commands.slim import Job, run

    recipe = Recipe(
        ratio=ratio,
        criterion=criterion,
        scope=cast(Literal["local", "global"], scope),
        multiple_of=_multiple_of(multiple_of),
        keep=tuple(keep or ()),
        seed=seed,
        static_batch=static_batch,
        device=device_of(device),
        data=data,
        samples=samples,
        test_samples=test_samples,
        batch=batch,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        engine=cast(Literal["slim", "torch-pruning"], engine),
        attention=cast(Literal["width", "heads", "both"], attention),
        of=of,
        target=limit,
        allocate=allocate,
        scan=scan,
        threads=threads,
        recover=cast(Literal["none", "bias", "affine", "full", "data-free"] | None, recover),
        recalibrate=recalibrate,
        finetune=finetune,
        iterations=iterations,
        optimizer=cast(Literal["auto", "sgd", "adamw"], optimizer),
        lr=lr,
        augment=augment,
        distill=distill,
        alpha=alpha,
        temperature=temperature,
        hints=hints,
        dropout=dropout,
        precision=cast(Literal["auto", "fp32", "bf16"], precision),
        max_drop=max_drop,
    )
    console = Console(stderr=False)
    job = Job(
        *(source, target, recipe, arch, tuple(inputs or ()), trust_pickle, code),
        *(save, report, opset, bench, min_speedup),
    )
    with status(console) as progress:
        result = run(job, progress)
    if result is None:
        return
    from slim_model.reporting.terminal import show

    show(result, console)
    console.print(Text(f"wrote {target}" + (f", {save}" if save else "") + (f", {report}" if report else "")))


def _multiple_of(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise InputError(f"--multiple-of {text}: it is 'auto' or a whole number, such as 8.") from None
