"""How different two results may be, and how that is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-4


def relative_error(reference: Tensor, other: Tensor) -> float:
    """max |a - b| / max |a|, never NaN; shapes must agree. Values that are not finite must be so on both sides."""
    if reference.shape != other.shape:
        return math.inf
    if reference.numel() == 0:
        return 0.0
    if not reference.is_floating_point():
        return float((reference != other).any())
    a, b = (x.float() if x.itemsize < 4 else x for x in (reference, other))
    scale = largest_abs(a)
    if not math.isfinite(scale):
        finite = a.isfinite()
        same = torch.equal(finite, b.isfinite()) and torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num())
        return relative_error(a[finite], b[finite]) if same else math.inf
    error = largest_abs(a - b)
    if math.isnan(error):
        return math.inf
    return error / scale if scale > 0 else error


def largest_abs(x: Tensor) -> float:
    """max |x|, NaN where one is. It makes no copy of x, which for images would take most of the time."""
    low, high = x.detach().aminmax()  # a weight may itself be an output
    return float(torch.maximum(-low, high))
