"""The table of int8 forms on screens of several widths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from slim_model.quantizing.quantize import Trial
from slim_model.reporting.int8_table import show_int8


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_no_number_is_cut(columns: int) -> None:
    """Nor a word: the name of the form takes more lines."""
    repairs = ("equalise", "correct biases")
    made = Trial(
        "u8s8-7bit", "percentile", repairs, 12, 0.9512, (31.5,), None, False, 98_765_432, 1234.56, 10.25, 10.11, 10.39
    )
    dense = SimpleNamespace(median_ms=2345.67)
    result: Any = SimpleNamespace(
        trials=(made,),
        latency=SimpleNamespace(dense=dense),
        fp32_bytes=123_456_789,
        fp32_accuracy=None,
        int8_accuracy=None,
        why="int8 was written",
        fp32_layers=(),
        tail=(),
        others={},
    )
    console = Console(record=True, width=columns)
    show_int8(result, console)
    text = console.export_text()
    assert "…" not in text
    numbers = ("95.1%", "31.5 dB", "98.77 MB", "1234.56 ms", "10.25x", "10.11-10.39", "123.46 MB", "2345.67 ms")
    assert all(number in text for number in (*numbers, "percentile", "equalise", "biases", "(too few)"))
