"""micronets: one tiny net per topology, each a few lines; ``test_micronets.py`` runs its laws over every row.

A row is a forward function under ``@net``: its name names the net, its first argument holds the layers given to the
decorator. ``free`` is the smallest share of channels (without the model's own outputs) that must be free to go. A new
net goes to the module of its subject.
"""

from __future__ import annotations

from micronets import (
    attention,
    chains,
    concatenation,
    convolution,
    gates,
    indices,
    interfaces,
    moves,
    norms,
    parameters,
    recurrent,
    reductions,
    splitting,
    unknown,
    views,
    writes,
)
from micronets.layers import normal
from micronets.table import NETS, Micro, randomised

SUBJECTS = (
    *(chains, convolution, concatenation, splitting, views, moves, gates, parameters, reductions, norms),
    *(attention, recurrent, writes, indices, interfaces, unknown),
)

__all__ = ["NETS", "SUBJECTS", "Micro", "normal", "randomised"]
