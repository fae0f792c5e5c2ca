"""What recovery could not do, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slim_model.data.accuracy import Step

FAR = 0.5
"""Of the outputs' variance: beyond it the small model tells little of what the dense one does."""


def recovery_notes(steps: Sequence[Step], groups: Sequence[dict[str, Any]]) -> list[str]:
    """A note for each step that was taken back, for layers that no step could change, and for outputs that stay far
    from the dense model's. ``groups`` are those of the report."""
    recovered = [step for step in steps if "taken_back" in step.did]
    if not recovered:
        return []
    notes = [
        f"recovery: {step.name} did not lower the error on held-out samples, and was taken back"
        for step in recovered
        if step.did["taken_back"]
    ]
    # Only who reads a removed channel has something to make up for.
    readers = dict.fromkeys(
        part["parameter"]
        for group in groups
        if group["after"] < group["before"]
        for part in group["slices"]
        if part["role"] == "reads"
    )
    changed = {name for step in recovered for name in step.did.get("layers", {})}
    unchanged = [name for name in readers if name not in changed]
    closed_form = any("layers" in step.did for step in recovered)
    stepwise = any("blocks" in step.did for step in recovered)
    # Blocks reach every layer, so that this can only be said of steps in closed form.
    if unchanged and closed_form and not stepwise:
        more = f" and {len(unchanged) - 3} more" if len(unchanged) > 3 else ""
        notes.append(
            f"recovery: nothing was done for {', '.join(unchanged[:3])}{more}, which read removed channels "
            "(transposed and 3d layers, packed sequences, and weights that several kinds of layers share, have no "
            "closed form here); --recover blocks or --finetune trains them"
        )
    error = recovered[-1].did["error_after"]
    if error is not None and error > FAR:
        better = (
            "--finetune, or a smaller --ratio" if stepwise else "--recover network, --finetune or a smaller --ratio"
        )
        notes.append(
            f"after recovery the outputs still differ from the dense model's by {error:.0%} of their variance on "
            f"held-out samples: try {better}"
        )
    return notes
