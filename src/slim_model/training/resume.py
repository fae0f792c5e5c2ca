"""Checkpoints of fine-tuning, in a file beside the result, so that a stopped run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slim_model.atomic_write import beside
from slim_model.errors import InputError
from slim_model.graph.graph import Graph


@dataclass(frozen=True, slots=True)
class Resume:
    """``place``: written after each epoch, whole or not at all. Each round has a file of its own."""

    place: Path

    def round(self, number: int) -> Resume:
        return self if number == 1 else Resume(self.place.with_name(f"{self.place.name}-{number}"))

    def save(self, identity: dict[str, Any], progress: dict[str, Any]) -> None:
        """Keep ``progress`` for a later run, where there is room for it: training goes on without."""
        archive = io.BytesIO()
        torch.save({"identity": identity, "held": progress}, archive)
        with contextlib.suppress(OSError, InputError), beside(self.place) as temporary:
            temporary.write_bytes(archive.getbuffer())

    def load(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """What was saved; None where nothing was. ``identity`` must be that of the run that wrote it."""
        if not self.place.exists():
            return None
        try:
            saved = torch.load(self.place, weights_only=True)
            theirs, progress = saved["identity"], dict(saved["held"])
        except Exception as error:  # damaged files fail in many ways
            raise InputError(
                f"{self.place} is not a checkpoint of fine-tuning. Remove it, or write elsewhere."
            ) from error
        if theirs != identity:
            raise InputError(
                f"{self.place} was left by another run: {_difference(theirs, identity)}. Give the same command to go "
                "on with that one, or remove the file to begin anew."
            )
        return progress

    def remove(self, rounds: int) -> None:
        for number in range(1, rounds + 1):
            with contextlib.suppress(OSError):
                self.round(number).place.unlink(missing_ok=True)


def digest(graph: Graph) -> str:
    """Of all stored values."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(graph.tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        hashed.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """``lr was 0.1, and is 0.2``"""
    for name in mine:
        was, now = theirs.get(name), mine[name]
        if was != now:
            if isinstance(was, dict) and isinstance(now, dict):
                return _difference(was, now)
            return f"{name} was {was}, and is {now}" if len(str(now)) < 60 else f"the {name} differ"
    return "it is of another version"
