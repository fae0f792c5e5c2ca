"""One fp32 file in whatever form, calibration and with whatever nodes left in fp32; each is built once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slim_model.quantizing.build import build
from slim_model.quantizing.calibrate import Feed, ranges
from slim_model.quantizing.float_model import DYNAMIC, STATIC, FloatModel
from slim_model.quantizing.forms import FORMS


@dataclass(frozen=True, slots=True)
class Variant:
    """``form``: a name of FORMS; ``calibration``: one of CALIBRATIONS, "" where the form is dynamic. ``fp32``: layers
    that stay as they are."""

    form: str
    calibration: str
    fp32: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Workshop:
    """Builds variants of ``model`` in ``folder``, calibrated on ``feeds``."""

    model: FloatModel
    folder: Path
    feeds: tuple[Feed, ...]
    metadata: Mapping[str, str]
    _ranges: dict[str, Any] = field(default_factory=dict)
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

    def file(self, variant: Variant) -> Path:
        """The file of ``variant``. Raises ExportError where onnxruntime's quantiser fails."""
        if variant not in self._built:
            form = FORMS[variant.form]
            if variant.calibration not in self._ranges and not form.dynamic:
                self._ranges[variant.calibration] = ranges(self.model.path, self.feeds, variant.calibration)
            layers = hashlib.sha256(" ".join(sorted(variant.fp32)).encode()).hexdigest()[:12]
            place = self.folder / f"{variant.form}-{variant.calibration}-{layers}.onnx"
            about = dict(self.metadata) | {"slim_model_int8": variant.form}
            build(self.model, form, self._ranges.get(variant.calibration), place, fp32=variant.fp32, metadata=about)
            self._built[variant] = place
        return self._built[variant]

    def discard(self, variant: Variant) -> None:
        """Free the disk of a file that was only judged."""
        self._built.pop(variant).unlink()
