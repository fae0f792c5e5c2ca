"""What coupling can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.options import check_choices, option

ATTENTION = ("width", "heads", "both")


@dataclass(frozen=True, slots=True)
class CouplingOptions:
    """``keep``: glob patterns of layers that are not touched. ``attention``: what goes where channels are viewed as
    heads: the same positions of every head (``width``), whole ``heads``, or both, first heads. ``equal_pieces``: what
    the model splits into pieces of one size, as by ``chunk``, loses the same positions of each, so that its own class
    takes the smaller layers."""

    keep: tuple[str, ...] = option(
        (), "Layers to leave alone, such as 'layer1.*' (repeat).", metavar="GLOB", many=True, basic=True
    )
    attention: str = option(
        "width", "What goes of attention: places in every head, whole heads, or both.", choices=ATTENTION
    )
    equal_pieces: bool = option(
        False,
        "Remove the same channels of pieces that a model splits equally, as its own class may need.",
        negatable=False,
    )

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        check_choices(self)
