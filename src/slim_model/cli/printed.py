"""The options of what a command prints and logs, which all that take long have."""

from __future__ import annotations

from slim_model.cli.parameters import Section
from slim_model.cli.status import LogOptions

PRINTED = Section("What is printed", LogOptions)
