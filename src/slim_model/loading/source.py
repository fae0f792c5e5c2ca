"""A model file, and what opening it may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim_model.errors import InputError
from slim_model.options import move_code, option


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """``arch`` builds the model that a state dict belongs to; with it only tensors are taken from the file, whatever
    else it holds: those at ``key``, of names that begin with ``prefix``, and where it is ``strict`` neither may lack a
    name of the other. ``inputs`` are as typed after ``--input``; ``example`` is a file of all of them.
    ``raw_heads``: of a detector, what boxes are decoded from. ``trust_pickle`` lets the file run what it likes;
    ``code`` is then the script whose classes were pickled as ``__main__``."""

    arch: str | None = option(
        None,
        "Builds the model of a state dict: torchvision:NAME, timm:NAME, file.py:callable, package.module:callable.",
        metavar="SPEC",
        move=move_code,
        basic=True,
    )
    inputs: tuple[str, ...] = option(
        (),
        "Example input, where it cannot be known (one per input).",
        flag="--input",
        metavar="[NAME=]1x3x224x224[:dtype][=VALUE]",
        many=True,
        basic=True,
    )
    example: Path | None = option(
        None, "All example inputs, in place of --input: arrays by name, or tensors.", kind=Path, metavar="F.npz|F.pt"
    )
    key: str | None = option(
        None, "Where in the file the weights lie, where there are several: state_dict_ema, 0, G.", metavar="NAME.NAME"
    )
    prefix: str | None = option(
        None, "Take only weights whose names begin so, and take it off them: backbone.", metavar="TEXT"
    )
    raw_heads: bool = option(
        False,
        "Of a detector: what its heads sum up, apart, in place of boxes; what decodes them is left out.",
        negatable=False,
    )
    strict: bool = option(True, "Refuse weights of which --arch lacks some, or that lack some.")
    trust_pickle: bool = option(False, "Run the code inside IN. Only for files you made.", negatable=False)
    code: Path | None = option(
        None, "With --trust-pickle: the script that defines the model's class.", kind=Path, metavar="FILE.py"
    )

    def __post_init__(self) -> None:
        if self.code and not self.trust_pickle:
            raise InputError(
                f"--code {self.code} is the script behind a pickle that is run: add --trust-pickle where you made the "
                "file yourself, or leave it out."
            )


@dataclass(frozen=True, slots=True)
class Source:
    """The file ``path`` and how it is opened. ``sha256``: what it had when the run was made that is repeated."""

    path: Path
    options: SourceOptions = SourceOptions()
    sha256: str | None = None
