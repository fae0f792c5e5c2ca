"""Whether layers are written as products of smaller ones, and how."""

from __future__ import annotations

from dataclasses import dataclass

from slim_model.errors import InputError
from slim_model.factoring.forms import FORMS
from slim_model.options import option


@dataclass(frozen=True, slots=True)
class FactoringOptions:
    """``rank_forms``: rows of FORMS that layers may take; none: all. ``widths``: layers also lose channels; without,
    only ranks go."""

    low_rank: bool = option(
        False,
        "Also write layers as products of two smaller ones; their ranks go on the same budget as widths.",
        negatable=False,
    )
    rank_forms: tuple[str, ...] = option(
        (), f"With --low-rank: the forms that layers may take ({', '.join(FORMS)}; repeat).", metavar="NAME", many=True
    )
    widths: bool = option(True, "With --low-rank: --no-widths leaves widths as they are; only ranks go.")

    def __post_init__(self) -> None:
        if isinstance(self.rank_forms, str):
            object.__setattr__(self, "rank_forms", (self.rank_forms,))
        for name in self.rank_forms:
            if name not in FORMS:
                raise InputError(f"no form of low rank is called '{name}'. There are: {', '.join(FORMS)}.")
        if self.rank_forms and not self.low_rank:
            raise InputError("--rank-forms says how --low-rank writes layers; add --low-rank.")
        if not self.widths and not self.low_rank:
            raise InputError("without widths nothing is left to remove; --no-widths goes with --low-rank.")

    @property
    def forms(self) -> tuple[str, ...]:
        """Those that layers may take."""
        return self.rank_forms or tuple(FORMS)
