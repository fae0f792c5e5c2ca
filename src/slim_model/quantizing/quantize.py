"""``quantize``: an fp32 ONNX file -> the int8 file that is fastest here and right on held-out data.

prepare -> calibrate and build each form -> time in turns -> judge -> repair -> leave layers out -> choose
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from slim_model.data.batches import Data
from slim_model.measuring.timing import Comparison, measure
from slim_model.progress import Progress
from slim_model.quantizing.float_model import prepare
from slim_model.quantizing.judge import Judge, accuracy_on_test
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.samples import Samples
from slim_model.quantizing.search import Limits, Search, Timer, Tried
from slim_model.quantizing.variants import Workshop


@dataclass(frozen=True, slots=True)
class Trial:
    """One int8 file that was built. ``repairs``: of REPAIRS, what was done first. ``fp32_layers``: layers left in fp32
    for accuracy. The judgement is that of held-out samples; the speed is that of its form against the fp32 file, None
    where it was not measured. ``within``: it is as near to fp32 as was asked for."""

    form: str
    calibration: str
    repairs: tuple[str, ...]
    fp32_layers: int
    agreement: float
    snr_db: tuple[float, ...]
    accuracy: float | None
    within: bool
    bytes: int
    median_ms: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None


@dataclass(frozen=True, slots=True)
class Fp32Layer:
    """A layer that stays fp32, since int8 costs most there: leaving it out gains ``gain_db`` of signal to noise."""

    name: str
    op: str
    gain_db: float


@dataclass(frozen=True, slots=True)
class Quantized:
    """What became of int8. ``written``: OUT.onnx is int8; ``why`` says so, or what speaks against it. ``form``,
    ``calibration`` and ``repairs``: of the file that was chosen ("" where none was); ``chosen``: its number among
    ``trials``.
    ``fp32_layers``: its layers that stay fp32, and why; ``tail``: nodes behind the last layer, which do; ``others``:
    nodes of kinds without int8 kernels. ``calibrated`` and ``held_out`` count samples. Accuracy is that of the test
    part. ``latency``: fp32 as ``dense``, int8 as ``slim``; ``against_dense``: the model before pruning as ``dense``."""

    written: bool
    why: str
    form: str
    calibration: str
    repairs: tuple[str, ...]
    calibrated: int
    held_out: int
    fp32_bytes: int
    int8_bytes: int | None
    trials: tuple[Trial, ...]
    chosen: int | None
    fp32_layers: tuple[Fp32Layer, ...]
    tail: tuple[str, ...]
    others: dict[str, int]
    held_out_accuracy: float | None
    fp32_accuracy: float | None = None
    int8_accuracy: float | None = None
    latency: Comparison | None = None
    against_dense: Comparison | None = None

    @property
    def agreement(self) -> float | None:
        """Of the chosen file with fp32, on held-out samples."""
        return self.trials[self.chosen].agreement if self.chosen is not None else None


def quantize(
    file: Path,
    target: Path,
    samples: Samples,
    options: QuantizingOptions,
    limits: Limits,
    *,
    test: Data | None = None,
    progress: Progress,
    timer: Timer = measure,
) -> Quantized:
    """Write ``target`` as int8, where a form of it is near enough to ``file`` on held-out samples and faster in the
    95 % interval, and say what was tried. Raises InputError where ``file`` cannot be int8 at all."""
    with tempfile.TemporaryDirectory() as folder:
        progress("preparing the fp32 file for int8")
        model = prepare(file, Path(folder))
        metadata = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        # What is fitted to and what judges are different samples.
        workshop = Workshop(model, Path(folder), samples.fitted, metadata)
        judge = Judge(file, samples.held, samples.labels, limits.threads, limits.boxes)
        search = Search(file, workshop, judge, options, limits, progress, timer)
        chosen, trials, layers = search.run()
        result = _result(search, chosen, trials, layers, samples)
        if chosen is None:
            return result
        progress("reading the accuracy of int8")
        source = workshop.file(chosen.variant)
        if result.written:
            target.write_bytes(source.read_bytes())
        return replace(
            result,
            fp32_accuracy=accuracy_on_test(file, test, limits.threads),
            int8_accuracy=accuracy_on_test(source, test, limits.threads),
        )


def _result(
    search: Search, chosen: Tried | None, tried: list[Tried], gains: dict[str, float], samples: Samples
) -> Quantized:
    model = search.workshop.model
    written, why = _verdict(search, chosen)
    kept = sorted(chosen.variant.fp32, key=lambda name: -gains[name]) if chosen else []
    return Quantized(
        written=written,
        why=why,
        form=chosen.variant.form if chosen else "",
        calibration=chosen.variant.calibration if chosen else "",
        repairs=chosen.variant.repairs if chosen else (),
        calibrated=samples.count,
        held_out=samples.held_count,
        fp32_bytes=search.file.stat().st_size,
        int8_bytes=search.workshop.file(chosen.variant).stat().st_size if chosen else None,
        trials=tuple(_trial(one, search.workshop) for one in tried),
        chosen=next((n for n, one in enumerate(tried) if one is chosen), None),
        fp32_layers=tuple(Fp32Layer(name, model.layers[name], round(gains[name], 2)) for name in kept),
        tail=model.tail,
        others=model.others,
        held_out_accuracy=search.judge.own.accuracy,
        latency=chosen.timing if chosen else None,
    )


def _verdict(search: Search, chosen: Tried | None) -> tuple[bool, str]:
    """Whether int8 is written, and why."""
    if chosen is None:
        drop, agreement = search.limits.max_drop, search.options.min_agreement
        gate = f"agreement {agreement:g}" if drop is None else f"max_drop {drop:g}"
        return False, f"fp32 was kept: no form of int8 is within {gate} on held-out samples"
    slower = chosen.timing is not None and chosen.timing.speedup_low <= 1
    if slower and not search.options.int8_anyway:
        return False, "fp32 was kept: int8 is not shown to be faster here (--int8-anyway writes it all the same)"
    named = ", ".join(filter(None, [chosen.variant.form, chosen.variant.calibration, *chosen.variant.repairs]))
    return True, f"int8 was written: {named}"


def _trial(one: Tried, workshop: Workshop) -> Trial:
    timing = one.timing
    return Trial(
        form=one.variant.form,
        calibration=one.variant.calibration,
        repairs=one.variant.repairs,
        fp32_layers=len(one.variant.fp32),
        agreement=round(one.judgement.agreement, 6),
        snr_db=tuple(round(x, 2) for x in one.judgement.snr_db),
        accuracy=one.judgement.accuracy,
        within=one.within,
        bytes=workshop.file(one.variant).stat().st_size,
        median_ms=timing.slim.median_ms if timing else None,
        speedup=timing.speedup if timing else None,
        speedup_low=timing.speedup_low if timing else None,
        speedup_high=timing.speedup_high if timing else None,
    )
