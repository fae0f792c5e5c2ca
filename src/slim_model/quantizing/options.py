"""Whether the ONNX file becomes int8, and what int8 must keep."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.errors import InputError
from slim_model.options import check_choices, option
from slim_model.quantizing.forms import FORMS


@dataclass(frozen=True, slots=True)
class QuantizingOptions:
    """``int8_form``: a row of FORMS; None: the fastest here. ``min_agreement``: the least share of held-out samples on
    which int8 gives the class that fp32 gives; where outputs score no classes, the least share of their variance that
    int8 gives. ``int8_anyway``: int8 is also written where it is not shown to be faster."""

    int8: bool = option(
        False, "Write int8, in the form that is fastest here and right on held-out data.", negatable=False, basic=True
    )
    int8_form: str | None = option(None, "Only this form of int8. Default: the fastest here.", choices=tuple(FORMS))
    min_agreement: float = option(
        0.95, "The least agreement of int8 with fp32 on held-out samples; nodes stay fp32 until it holds.", metavar="X"
    )
    int8_anyway: bool = option(False, "Write int8 also where it is not faster than fp32 here.", negatable=False)

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.min_agreement <= 1:
            raise InputError(f"min_agreement {self.min_agreement:g} is a share: it lies above 0, and is at most 1.")
