"""The files of a search for a small model, as the int8 files that they would become."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor

from slim_model.quantizing.calibrate import Feed
from slim_model.quantizing.float_model import prepare
from slim_model.quantizing.forms import CALIBRATIONS, FORMS
from slim_model.quantizing.variants import Variant, Workshop


@dataclass(frozen=True, slots=True)
class Candidates:
    """Makes int8 of fp32 files in ``form``. Size and speed hardly depend on the ranges of activations: they are those
    of one run on ``inputs``, and no data is read."""

    inputs: Sequence[Tensor]
    form: str

    @classmethod
    def of(
        cls, dense: Path, inputs: Sequence[Tensor], only: str | None, ms_of: Callable[[list[Path]], list[float]] | None
    ) -> Candidates:
        """In the form ``only``; else, as ``ms_of`` has it of files, in that which is fastest for ``dense``; else in the
        first that fits. Raises InputError where ``dense`` cannot be int8."""
        with _workshop(dense, inputs) as workshop:
            forms = workshop.forms()
            if only or ms_of is None:
                return cls(inputs, only or forms[0])
            ms = ms_of([workshop.file(_variant(form)) for form in forms])
        return cls(inputs, forms[ms.index(min(ms))])

    def make_int8(self, file: Path) -> None:
        """``file`` becomes int8."""
        with _workshop(file, self.inputs) as workshop:
            shutil.copyfile(workshop.file(_variant(self.form)), file)


def _variant(form: str) -> Variant:
    return Variant(form, "" if FORMS[form].dynamic else CALIBRATIONS[0])


@contextmanager
def _workshop(file: Path, inputs: Sequence[Tensor]) -> Iterator[Workshop]:
    graph = onnx.load(file, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [x.name for x in graph.input if x.name not in stored]
    feed: Feed = {name: x.detach().cpu().numpy() for name, x in zip(names, inputs, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        yield Workshop(prepare(file, Path(folder)), Path(folder), (feed,), {})
