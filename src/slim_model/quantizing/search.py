"""The search for the int8 file: every form timed in turns, judged, repaired, its worst layers left in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from slim_model.calling.boxes import BoxForm
from slim_model.errors import InputError
from slim_model.measuring.timing import Comparison
from slim_model.progress import Progress, count_in_text
from slim_model.quantizing.forms import CALIBRATIONS, FORMS
from slim_model.quantizing.judge import Judge, Judgement
from slim_model.quantizing.options import QuantizingOptions
from slim_model.quantizing.variants import Variant, Workshop

Timer = Callable[..., Sequence[Comparison]]
"""``measuring.timing.measure``."""
_RANKED_ON = 8
"""Feeds that layers are ranked on, by leaving each out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``threads`` of the measured runs, which are given ``inputs``; None: speed is not measured. ``max_drop``: of
    accuracy on held-out labels, where there are any and it is asked for. ``boxes``: how the first output tells them."""

    threads: int = 1
    inputs: Sequence[Tensor] | None = None
    max_drop: float | None = None
    boxes: BoxForm | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """A file that was built, and what it gives on held-out samples. ``within``: that is near enough."""

    variant: Variant
    judgement: Judgement
    within: bool
    timing: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """``file``: fp32, which int8 is judged and timed against. The same data, seed and form give the same file; which
    form is taken is what ``timer`` says of this machine."""

    file: Path
    workshop: Workshop
    judge: Judge
    options: QuantizingOptions
    limits: Limits
    progress: Progress
    timer: Timer

    def run(self) -> tuple[Tried | None, list[Tried], dict[str, float]]:
        """(the chosen one, all, what leaving each layer out gained)."""
        # every form once, in the calibration that costs least: speed does not depend on it
        tried = by_speed(self._timed([self._first(name) for name in self._forms()]))
        # the fastest within the gate, as near to fp32 as calibration and repairs bring it
        extra: list[Tried] = []
        best = None
        for one in tried:
            family = self._improved(one)
            extra += family[1:]
            best = max((each for each in family if each.within), key=_nearest, default=None)
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

    def _improved(self, one: Tried) -> list[Tried]:
        """``one``, then what is as fast: where it is not within the gate in other calibrations, and the nearest of all
        with each repair that brings it nearer to fp32, one after the other."""
        family = [one]
        if not one.within and one.variant.calibration:
            self.progress(f"calibrating {one.variant.form} in other ways")
            family += [self._like(one, replace(one.variant, calibration=name)) for name in CALIBRATIONS[1:]]
        for repair in self.workshop.repairs(one.variant.form):
            self.progress(f"repairing {one.variant.form}: {repair}")
            best = max(family, key=_nearest).variant
            family.append(self._like(one, replace(best, repairs=(*best.repairs, repair))))
        return family

    def _forms(self) -> list[str]:
        fitting = self.workshop.forms()
        only = self.options.int8_form
        if only and only not in fitting:
            raise InputError(f"the form {only} does not fit this model; these do: {', '.join(fitting)}.")
        return [only] if only else fitting

    def _first(self, form: str) -> Tried:
        self.progress(f"building and judging int8: {form}")
        return self._tried(Variant(form, "" if FORMS[form].dynamic else CALIBRATIONS[0]))

    def _like(self, one: Tried, variant: Variant) -> Tried:
        """``variant``, which has the nodes of ``one``, and so its speed."""
        return replace(self._tried(variant), timing=one.timing)

    def _tried(self, variant: Variant) -> Tried:
        judgement = self.judge(self.workshop.file(variant))
        return Tried(variant, judgement, self._within(judgement))

    def _within(self, judgement: Judgement) -> bool:
        if self.limits.max_drop is not None and judgement.accuracy is not None and self.judge.own.accuracy is not None:
            return self.judge.own.accuracy - judgement.accuracy <= self.limits.max_drop
        return judgement.agreement >= self.options.min_agreement

    def _timed(self, tried: list[Tried]) -> list[Tried]:
        """All in turns with the fp32 file."""
        if self.limits.inputs is None:
            return tried
        self.progress("measuring the latency of int8")
        files = [self.workshop.file(one.variant) for one in tried]
        _, *timings = self.timer(
            "onnxruntime", [self.file, *files], self.limits.inputs, threads=self.limits.threads, budget_s=20.0
        )
        return [replace(one, timing=timing) for one, timing in zip(tried, timings, strict=True)]

    def _leave_layers_out(self, one: Tried) -> tuple[Tried | None, dict[str, float]]:
        """``one`` with as few of its layers in fp32 as bring it within the gate, those first whose leaving out gains
        most on samples it was calibrated on; None where nearly all would have to be."""
        layers = self.workshop.layers(one.variant.form)
        judge = Judge(self.file, self.workshop.feeds[:_RANKED_ON], None, self.limits.threads)
        before = judge(self.workshop.file(one.variant)).nearness
        gains = {}
        count = count_in_text(self.progress, "leaving out layers of int8, one at a time")
        for number, name in enumerate(layers):
            count(number, len(layers))
            left = replace(one.variant, fp32=frozenset({name}))
            gains[name] = judge(self.workshop.file(left)).nearness - before
            self.workshop.discard(left)
        worst = sorted(gains, key=lambda name: -gains[name])
        # twice as many until the gate holds, then halved between the last two
        tried: dict[int, Tried] = {}
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

    def _faster(self, one: Tried | None, other: Tried | None) -> Tried | None:
        if one is None or other is None:
            return one or other
        return other if _slower(one, other) else one


def by_speed(tried: list[Tried]) -> list[Tried]:
    """The fastest first; of those not shown to be slower than the fastest, the nearest to fp32 first, then the first of
    FORMS: noise within the intervals changes nothing. As they are where none was timed."""
    if not any(one.timing for one in tried):
        return tried
    fastest = max(tried, key=_speed)
    alike = [one for one in tried if not _slower(one, fastest)]
    others = [one for one in tried if _slower(one, fastest)]
    return sorted(alike, key=_nearest, reverse=True) + sorted(others, key=_speed, reverse=True)


def _slower(one: Tried, other: Tried) -> bool:
    """Whether their intervals show ``one`` to be slower."""
    return one.timing is not None and other.timing is not None and one.timing.speedup_high < other.timing.speedup_low


def _nearest(one: Tried) -> float:
    return one.judgement.nearness


def _speed(one: Tried) -> float:
    return one.timing.speedup if one.timing else -math.inf
