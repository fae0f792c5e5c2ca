"""``quantize``: an fp32 ONNX file -> the int8 file that is fastest here and right on held-out data.

prepare -> calibrate and build each form -> time in turns -> judge -> leave nodes out -> choose
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import Tensor

from slim_model.data.batches import Data
from slim_model.errors import InputError
from slim_model.measuring.timing import Comparison, measure
from slim_model.progress import Progress
from slim_model.quantizing.float_model import prepare
from slim_model.quantizing.forms import CALIBRATIONS, FORMS
from slim_model.quantizing.judge import Judge, Judgement, accuracy_on_test
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.samples import Samples
from slim_model.quantizing.variants import Variant, Workshop

Timer = Callable[..., Sequence[Comparison]]
"""``measuring.timing.measure``."""
_RANKED_ON = 8
"""Feeds that layers are ranked on, by leaving each out."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One int8 file that was built. ``fp32_layers``: layers left in fp32 for accuracy. The judgement is that of
    held-out samples; the speed is that against the fp32 file, None where it was not measured. ``within``: it is as
    near to fp32 as was asked for."""

    form: str
    calibration: str
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
    """What became of int8. ``written``: OUT.onnx is int8; ``why`` says so, or what speaks against it. ``form`` and
    ``calibration``: of the file that was chosen ("" where none was); ``chosen``: its number among ``trials``.
    ``fp32_layers``: its layers that stay fp32, and why; ``tail``: nodes behind the last layer, which do; ``others``:
    nodes of kinds without int8 kernels. ``calibrated`` and ``held_out`` count samples. Accuracy is that of the test
    part. ``latency``: fp32 as ``dense``, int8 as ``slim``; ``against_dense``: the model before pruning as ``dense``."""

    written: bool
    why: str
    form: str
    calibration: str
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


@dataclass(frozen=True, slots=True)
class Limits:
    """``threads`` of the measured runs, which are given ``inputs``; None: speed is not measured. ``max_drop``: of
    accuracy on held-out labels, where there are any and it is asked for."""

    threads: int = 1
    inputs: Sequence[Tensor] | None = None
    max_drop: float | None = None


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
        metadata = {entry.key: entry.value for entry in onnx.load(file, load_external_data=False).metadata_props}
        # What is fitted to and what judges are different samples.
        workshop = Workshop(prepare(file, Path(folder)), Path(folder), samples.fitted, metadata)
        judge = Judge(file, samples.held, samples.labels, limits.threads)
        search = _Search(file, workshop, judge, options, limits, progress, timer)
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


@dataclass(frozen=True, slots=True)
class _Tried:
    variant: Variant
    judgement: Judgement
    within: bool
    timing: Comparison | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    file: Path
    workshop: Workshop
    judge: Judge
    options: QuantizingOptions
    limits: Limits
    progress: Progress
    timer: Timer

    def run(self) -> tuple[_Tried | None, list[_Tried], dict[str, float]]:
        """(the chosen one, all, what leaving each layer out gained)."""
        # every form once, in the calibration that costs least: speed does not depend on it
        tried = self._timed([self._first(name) for name in self._forms()])
        tried = _by_speed(tried)
        # the fastest within the gate, in its best calibration
        extra: list[_Tried] = []
        best = None
        for one in tried:
            others = [] if one.within or not one.variant.calibration else self._calibrated(one)
            extra += others
            best = max((t for t in (one, *others) if t.within), key=lambda t: t.judgement.nearness, default=None)
            if best:
                break
        # where the fastest form itself is not within it, its worst layers stay fp32, and the faster of both is taken
        fastest = max((t for t in (tried + extra) if t.variant.form == tried[0].variant.form), key=_nearest)
        gains: dict[str, float] = {}
        if best is None or best.variant.form != fastest.variant.form:
            mixed, gains = self._leave_layers_out(fastest)
            if mixed:
                extra.append(mixed)
            best = self._faster(best, mixed)
        return best, [*tried, *extra], gains

    def _forms(self) -> list[str]:
        fitting = self.workshop.forms()
        only = self.options.int8_form
        if only and only not in fitting:
            raise InputError(f"the form {only} does not fit this model; these do: {', '.join(fitting)}.")
        return [only] if only else fitting

    def _first(self, form: str) -> _Tried:
        self.progress(f"building and judging int8: {form}")
        return self._tried(Variant(form, "" if FORMS[form].dynamic else CALIBRATIONS[0]))

    def _calibrated(self, one: _Tried) -> list[_Tried]:
        self.progress(f"calibrating {one.variant.form} in other ways")
        return [self._tried(replace(one.variant, calibration=name)) for name in CALIBRATIONS[1:]]

    def _tried(self, variant: Variant) -> _Tried:
        judgement = self.judge(self.workshop.file(variant))
        return _Tried(variant, judgement, self._within(judgement))

    def _within(self, judgement: Judgement) -> bool:
        if self.limits.max_drop is not None and judgement.accuracy is not None and self.judge.own.accuracy is not None:
            return self.judge.own.accuracy - judgement.accuracy <= self.limits.max_drop
        return judgement.agreement >= self.options.min_agreement

    def _timed(self, tried: list[_Tried]) -> list[_Tried]:
        """All in turns with the fp32 file; those without a file of their own speed keep none."""
        if self.limits.inputs is None:
            return tried
        self.progress("measuring the latency of int8")
        files = [self.workshop.file(one.variant) for one in tried]
        _, *timings = self.timer(
            "onnxruntime", [self.file, *files], self.limits.inputs, threads=self.limits.threads, budget_s=20.0
        )
        return [replace(one, timing=timing) for one, timing in zip(tried, timings, strict=True)]

    def _leave_layers_out(self, one: _Tried) -> tuple[_Tried | None, dict[str, float]]:
        """``one`` with as few of its layers in fp32 as bring it within the gate, those first whose leaving out gains
        most on samples it was calibrated on; None where nearly all would have to be."""
        layers = self.workshop.layers(one.variant.form)
        judge = Judge(self.file, self.workshop.feeds[:_RANKED_ON], None, self.limits.threads)
        before = judge(self.workshop.file(one.variant)).nearness
        gains = {}
        for number, name in enumerate(layers, 1):
            self.progress(f"leaving out layers of int8, one at a time: {number} of {len(layers)}")
            left = replace(one.variant, fp32=frozenset({name}))
            gains[name] = judge(self.workshop.file(left)).nearness - before
            self.workshop.discard(left)
        worst = sorted(gains, key=lambda name: -gains[name])
        # twice as many until the gate holds, then halved between the last two
        tried: dict[int, _Tried] = {}
        low, high = 0, 1
        while high < len(worst):
            tried[high] = self._tried(replace(one.variant, fp32=frozenset(worst[:high])))
            if tried[high].within:
                break
            low, high = high, 2 * high
        if high not in tried:
            return None, gains
        while high - low > 1:
            middle = (low + high) // 2
            tried[middle] = self._tried(replace(one.variant, fp32=frozenset(worst[:middle])))
            low, high = (low, middle) if tried[middle].within else (middle, high)
        return self._timed([tried[high]])[0], gains

    def _faster(self, one: _Tried | None, other: _Tried | None) -> _Tried | None:
        if one is None or other is None:
            return one or other
        return other if _speed(other) > _speed(one) else one


def _by_speed(tried: list[_Tried]) -> list[_Tried]:
    """The fastest first; of those that are not shown to be slower than the fastest, the nearest to fp32 first."""
    best = max((one.timing.speedup for one in tried if one.timing), default=0.0)
    alike = [one for one in tried if one.timing and one.timing.speedup_high >= best]
    others = [one for one in tried if one not in alike]
    return sorted(alike, key=_nearest, reverse=True) + sorted(others, key=_speed, reverse=True)


def _nearest(one: _Tried) -> float:
    return one.judgement.nearness


def _speed(one: _Tried) -> float:
    return one.timing.speedup if one.timing else -math.inf


def _result(
    search: _Search, chosen: _Tried | None, tried: list[_Tried], gains: dict[str, float], samples: Samples
) -> Quantized:
    model = search.workshop.model
    written, why = _verdict(search, chosen)
    kept = sorted(chosen.variant.fp32, key=lambda name: -gains[name]) if chosen else []
    return Quantized(
        written=written,
        why=why,
        form=chosen.variant.form if chosen else "",
        calibration=chosen.variant.calibration if chosen else "",
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


def _verdict(search: _Search, chosen: _Tried | None) -> tuple[bool, str]:
    """Whether int8 is written, and why."""
    if chosen is None:
        drop, agreement = search.limits.max_drop, search.options.min_agreement
        gate = f"agreement {agreement:g}" if drop is None else f"max_drop {drop:g}"
        return False, f"fp32 was kept: no form of int8 is within {gate} on held-out samples"
    slower = chosen.timing is not None and chosen.timing.speedup_low <= 1
    if slower and not search.options.int8_anyway:
        return False, "fp32 was kept: int8 is not shown to be faster here (--int8-anyway writes it all the same)"
    named = ", ".join(filter(None, [chosen.variant.form, chosen.variant.calibration]))
    return True, f"int8 was written: {named}"


def _trial(one: _Tried, workshop: Workshop) -> Trial:
    timing = one.timing
    return Trial(
        form=one.variant.form,
        calibration=one.variant.calibration,
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
