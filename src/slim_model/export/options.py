"""What is written beside the ONNX file, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slim_model.errors import InputError
from slim_model.options import option, options_of

FORMATS = (".pt2", ".safetensors", ".pt")


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """``save``: the small PyTorch model, in the format of its ending. ``report``: the JSON report. ``html``: the same
    as a page. ``summary``: its figures in Markdown. ``model_card``: a card for the Hugging Face Hub. ``write_recipe``:
    the options as they were used, for ``slim-model run``. ``keep_fp32``: the ONNX file before int8. ``mlflow``: where
    MLflow keeps runs. ``opset``: of the ONNX file; None: the exporter's."""

    save: Path | None = option(
        None, "Also the small PyTorch model: .pt2, .safetensors or .pt.", kind=Path, metavar="S", basic=True
    )
    report: Path | None = option(
        None, "Everything that was done, for machines.", kind=Path, metavar="R.json", basic=True
    )
    html: Path | None = option(None, "The report as a page, for a browser.", kind=Path, metavar="R.html")
    summary: Path | None = option(None, "The figures as Markdown, for the page of a CI job.", kind=Path, metavar="S.md")
    model_card: Path | None = option(None, "A model card for the Hugging Face Hub.", kind=Path, metavar="README.md")
    write_recipe: Path | None = option(
        None, "The options as they were used, for slim-model run.", kind=Path, metavar="R.toml"
    )
    keep_fp32: Path | None = option(None, "With --int8: also the fp32 file.", kind=Path, metavar="F.onnx")
    mlflow: str | None = option(
        None, "Also log the run with MLflow: the URI of a server or of a database.", metavar="URI"
    )
    opset: int | None = option(None, "ONNX opset; default: the exporter's.", kind=int, metavar="N")

    @property
    def places(self) -> list[Path]:
        """The files that are asked for."""
        values = (getattr(self, field.name) for field, about in options_of(type(self)) if about.kind is Path)
        return [place for place in values if place]

    def __post_init__(self) -> None:
        if self.save and self.save.suffix not in FORMATS:
            raise InputError(f"--save {self.save}: the ending says what is written; it is one of {', '.join(FORMATS)}.")
