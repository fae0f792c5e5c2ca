"""Other values for an input: of the kind that it is, and so that the model takes them.

A picture, token numbers, bytes, a mask and a length are told apart by type, by the values of the example, and by the
tables that the model looks them up in (``looked_up``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slim_model.graph.other_inputs.looked_up import Span

_BYTE = Span(0, 255)
_HIDES = -1e4
"""What is added to scores so that nothing is left of them behind softmax: this or less."""


def other_values(x: Tensor, shape: tuple[int, ...], span: Span | None, generator: torch.Generator) -> Tensor:
    """A tensor of ``shape`` and of the type of ``x``, with other values of its kind. ``span``: the numbers that tables
    have. Masks hide other positions than ``x`` does, and never the first of a row, nor one's own in a square."""
    if span is None and is_mask(x):
        return _mask(x, shape, generator)
    if x.is_floating_point() or x.is_complex():
        return _floats(x, shape, generator)
    if x.dtype is torch.uint8 and span is None:
        span = _BYTE
    if span is None:  # a length, a step: what was seen, and less
        span = Span(min(1, int(x.min())), int(x.max())) if x.numel() else Span(0, 0)
    made = torch.randint(span.least, span.most + 1, shape, generator=generator).to(x)
    if torch.equal(made, fitted(x, shape)):  # by chance, where there are few
        made = torch.where(made < span.most, made + 1, span.least).to(x)
    return made


def is_mask(x: Tensor) -> bool:
    """Whether ``x`` is one by its values: true and false, 0 and 1, or 0 and what no score outweighs."""
    if x.dtype is torch.bool:
        return True
    if not x.numel() or not x.dim() or x.is_complex():
        return False
    others = x[x != 0]
    if not len(others):
        return not x.is_floating_point()
    low, high = (float(value) for value in others.aminmax())
    if not x.is_floating_point():
        return low == high == 1
    return low == high and len(others) < x.numel() and (low == 1 or low <= _HIDES)


def _floats(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal; values of the example where none of these is below zero (a picture, a spectrum), and they differ. Drawn
    twice where they are the example's: that may come of the same seed."""
    dtype = x.dtype if x.is_complex() else torch.float32
    drawn = not x.is_complex() and x.numel() > 0 and 0 <= float(x.min()) < float(x.max())
    for _ in range(2):
        if drawn:
            made = x.reshape(-1)[torch.randint(x.numel(), shape, generator=generator).to(x.device)]
        else:
            made = torch.randn(shape, generator=generator, dtype=dtype).to(x)
        if not torch.equal(made, fitted(x, shape)):
            break
    return made


def _mask(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Of what is added to scores, 0 and what hides; of others 0 and 1."""
    if x.is_floating_point() and float(x.min()) < 0:
        seen = _other_flags(fitted(x == 0, shape), generator)
        return torch.where(seen, torch.zeros_like(x.min()), x.min())
    return _other_flags(fitted(x != 0, shape), generator).to(x)


def _other_flags(rows: Tensor, generator: torch.Generator) -> Tensor:
    """In a square (what sees what) spread otherwise beside the diagonal. Else rows in which what is not like the first
    position begins elsewhere, as texts end elsewhere. A single flag is turned."""
    if not rows.dim() or rows.shape[-1] < 2:
        return ~rows
    length = rows.shape[-1]
    begins = torch.randint(1, length, (*rows.shape[:-1], 1), generator=generator)
    ways = [_from(rows, begins), _from(rows, begins % (length - 1) + 1), rows[..., :1].expand(rows.shape)]
    if rows.dim() > 1 and length == rows.shape[-2]:
        ways.insert(0, _spread(rows, generator))
    return next((made for made in ways if not torch.equal(made, rows)), rows)


def _from(rows: Tensor, begins: Tensor) -> Tensor:
    """The value of the first position up to ``begins``, and the opposite from there on."""
    later = (torch.arange(rows.shape[-1]) >= begins).to(rows.device)
    return rows[..., :1] ^ later


def _spread(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Half of what is neither in the first column nor on the diagonal has the opposite of what is on the diagonal."""
    length = rows.shape[-1]
    some = torch.rand(rows.shape, generator=generator) < 0.5
    some &= ~torch.eye(length, dtype=torch.bool) & (torch.arange(length) > 0)
    return torch.where(some.to(rows.device), ~rows.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), rows)


def fitted(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x``, cut or repeated to ``shape``."""
    for axis, size in enumerate(shape):
        if size != x.shape[axis]:
            x = x.index_select(axis, torch.arange(size, device=x.device) % x.shape[axis])
    return x
