"""What tracing can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.options import option


@dataclass(frozen=True, slots=True)
class TracingOptions:
    """``static_batch``: the batch size is that of the example, also in the files that are written."""

    static_batch: bool = option(False, "Fix the batch size at that of --input.", negatable=False)
