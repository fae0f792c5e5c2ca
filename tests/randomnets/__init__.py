"""randomnets: networks drawn at random, as source text first, so that a failure prints as a net one can run.

A net starts from its inputs and takes steps. Each step reads values that are there and adds lines to ``forward`` (and
layers to ``__init__``). A step is one function under ``@step``; the kinds of value it may start from are its arguments.
"""

from __future__ import annotations

from randomnets.draw import STEPS, random_nets
from randomnets.sketch import RandomNet

__all__ = ["STEPS", "RandomNet", "random_nets"]
