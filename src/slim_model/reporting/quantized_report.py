"""What ``slim-model quantize --report`` writes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from slim_model.measuring.machine import environment
from slim_model.quantizing.quantize import Quantized
from slim_model.reporting.report_schema import with_version
from slim_model.strict_json import strict_json
from slim_model.version import __version__

QUANTIZED_SCHEMA = "slim-model-quantized/1"


@dataclass(frozen=True, slots=True)
class QuantizedReport:
    """``source``: ``name`` and ``sha256`` of IN.onnx. ``warnings``: what the screen calls notes."""

    source: dict[str, str]
    int8: Quantized
    warnings: list[str]
    environment: dict[str, Any]

    def as_json(self) -> str:
        return strict_json({"schema": QUANTIZED_SCHEMA} | asdict(self))


def quantized_report(name: str, sha256: str, result: Quantized, notes: list[str]) -> QuantizedReport:
    """``result`` with where it comes from, and on what machine."""
    about = {"name": name, "sha256": sha256}
    return QuantizedReport(about, result, notes, {"slim_model": __version__} | environment())


def quantized_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of what ``slim-model quantize --report`` writes."""
    return with_version(QuantizedReport, QUANTIZED_SCHEMA)
