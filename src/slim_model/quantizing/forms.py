"""The forms in which onnxruntime computes int8, one row each. Nothing here imports PyTorch or onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """``activations`` and ``weights``: "u8" (0 to 255, with a zero point) or "s8" (-128 to 127). ``per_channel``: each
    output channel of a weight has a scale of its own. ``seven_bits``: weights take 7 bits, so that the sum of two
    products, which the processor adds in 16 bits, cannot saturate. ``dynamic``: the range of an activation is taken
    from each input at run time, not from calibration.
    """

    activations: str
    weights: str
    per_channel: bool
    seven_bits: bool
    dynamic: bool = False


FORMS: dict[str, Form] = {
    "u8s8-7bit": Form("u8", "s8", per_channel=True, seven_bits=True),
    "u8s8": Form("u8", "s8", per_channel=True, seven_bits=False),
    "s8s8": Form("s8", "s8", per_channel=True, seven_bits=False),
    "u8u8": Form("u8", "u8", per_channel=False, seven_bits=False),
    "dynamic-7bit": Form("u8", "s8", per_channel=True, seven_bits=True, dynamic=True),
    "dynamic": Form("u8", "s8", per_channel=True, seven_bits=False, dynamic=True),
}
"""The forms by name. Where latency is not measured, the first that is right on data is taken: it is right on every
processor, and was the fastest without VNNI."""

CALIBRATIONS = ("minmax", "percentile", "entropy")
"""How the range of an activation follows from samples: all of it; all but the largest hundred-thousandth; the range
whose histogram in int8 is nearest to the one in fp32 (Kullback-Leibler)."""

REPAIRS = ("equalise", "correct biases")
"""What may bring static int8 nearer to fp32, in the order in which it is tried: ``equalise``, ``correct_biases``."""
