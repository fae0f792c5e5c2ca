"""One fp32 file in whatever form, calibration, repaired, and with whatever nodes left in fp32; each is built once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slim_model.quantizing.build import build
from slim_model.quantizing.calibrate import Feed, ranges
from slim_model.quantizing.correct_biases import Corrections, correct_biases, corrections
from slim_model.quantizing.equalise import equalise
from slim_model.quantizing.float_model import DYNAMIC, STATIC, FloatModel
from slim_model.quantizing.forms import FORMS, REPAIRS


@dataclass(frozen=True, slots=True)
class Variant:
    """``form``: a name of FORMS; ``calibration``: one of CALIBRATIONS, "" where the form is dynamic. ``repairs``: of
    REPAIRS, in their order. ``fp32``: layers that stay as they are."""

    form: str
    calibration: str
    repairs: tuple[str, ...] = ()
    fp32: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Workshop:
    """Builds variants of ``model`` in ``folder``, calibrated on ``feeds``."""

    model: FloatModel
    folder: Path
    feeds: tuple[Feed, ...]
    metadata: Mapping[str, str]
    _equalised: list[FloatModel | None] = field(default_factory=list)
    _ranges: dict[tuple[str, bool], Any] = field(default_factory=dict)
    _corrections: dict[Variant, Corrections] = field(default_factory=dict)
    _built: dict[Variant, Path] = field(default_factory=dict)

    def layers(self, form: str) -> list[str]:
        """The layers that ``form`` quantises."""
        kinds = DYNAMIC if FORMS[form].dynamic else STATIC
        return [name for name, kind in self.model.layers.items() if kind in kinds]

    def forms(self) -> list[str]:
        """Those that fit: static where there is a layer for it; dynamic where most layers take it, since convolutions
        have no kernel for it that is fast."""
        most = sum(kind in DYNAMIC for kind in self.model.layers.values()) > len(self.model.layers) / 2
        return [name for name, form in FORMS.items() if (most if form.dynamic else self.model.static)]

    def repairs(self, form: str) -> list[str]:
        """Those of REPAIRS that change the model in ``form``."""
        if FORMS[form].dynamic:
            return []
        return [name for name in REPAIRS if name != "equalise" or self._equalised_model() is not None]

    def file(self, variant: Variant) -> Path:
        """The file of ``variant``. Raises ExportError where onnxruntime's quantiser fails."""
        if variant not in self._built:
            names = " ".join([*variant.repairs, "/", *sorted(variant.fp32)])
            short = hashlib.sha256(names.encode()).hexdigest()[:12]
            place = self.folder / f"{variant.form}-{variant.calibration}-{short}.onnx"
            about = dict(self.metadata) | {"slim_model_int8": variant.form}
            model, known = self._source(variant), self._ranges_of(variant)
            build(model, FORMS[variant.form], known, place, fp32=variant.fp32, metadata=about)
            self._built[variant] = place
        return self._built[variant]

    def discard(self, variant: Variant) -> None:
        """Free the disk of a file that was only judged."""
        self._built.pop(variant).unlink()

    def _source(self, variant: Variant) -> FloatModel:
        """The fp32 model, repaired, that ``variant`` is made of."""
        if "correct biases" not in variant.repairs:
            model = self._equalised_model() if "equalise" in variant.repairs else self.model
            assert model is not None  # repairs() offers it where there is one
            return model
        # of the file before it: what each layer adds to the mean does not depend on which others stay fp32
        before = replace(variant, repairs=tuple(r for r in variant.repairs if r != "correct biases"), fp32=frozenset())
        source = self._source(before)
        if before not in self._corrections:
            self._corrections[before] = corrections(source.path, self.file(before), self.feeds)
        added = {name: x for name, x in self._corrections[before].items() if name not in variant.fp32}
        place = self.folder / "corrected.onnx"
        correct_biases(source.path, added, place)
        return replace(source, path=place)

    def _equalised_model(self) -> FloatModel | None:
        if not self._equalised:
            self._equalised.append(equalise(self.model))
        return self._equalised[0]

    def _ranges_of(self, variant: Variant) -> Any:
        """As calibration finds them; those of biases that are corrected are the same."""
        if FORMS[variant.form].dynamic:
            return None
        key = variant.calibration, "equalise" in variant.repairs
        if key not in self._ranges:
            model = self._source(replace(variant, repairs=("equalise",) if key[1] else ()))
            self._ranges[key] = ranges(model.path, self.feeds, variant.calibration)
        return self._ranges[key]
