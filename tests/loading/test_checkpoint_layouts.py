"""Each checkpoint of docs/checkpoints.md is read as that page says."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch

from checkpoint_layouts import INPUT, LAYOUTS, SOURCE, Layout, state
from model_files import opened, refusal
from slim_model.errors import InputError
from slim_model.loading.file_form import first_look

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: re.sub(r"[^\w ]", "", layout.project))
def test_a_checkpoint_is_read(file: Path, layout: Layout, clean_imports: None) -> None:
    file.with_name("net.py").write_text(SOURCE)
    layout.save(file)
    first_look(file)
    options = {"arch": f"{file.with_name('net.py')}:Net", "inputs": [INPUT]} | dict(layout.options)
    if layout.taken not in ("raw", "averaged", "masked"):
        assert layout.taken in refusal(file, **options)
        return
    weights = state(2 if layout.taken == "averaged" else 1)
    if layout.taken == "masked":
        weights["conv.weight"] = weights["conv.weight"].clamp(min=0)
    taken = opened(file, **options).model.state_dict()
    assert taken.keys() == weights.keys()
    assert [name for name in weights if not torch.equal(taken[name], weights[name])] == []


@pytest.mark.parametrize("archive", [True, False], ids=["torch.save", "pickle.dump"])
@pytest.mark.parametrize("harm", ["cut", "no text", "no instruction"])
def test_damage_is_seen_before_pytorch_is_imported(file: Path, archive: bool, harm: str) -> None:
    text = pickle.dumps({"a longer name": [1, 2, 3]}, protocol=2)
    at = text.index(b"longer")
    harmed = {"cut": text[:-4], "no text": text[:at] + b"\xff" + text[at + 1 :], "no instruction": text[:2] + b"\xff"}
    damaged = harmed[harm]
    if archive:
        with zipfile.ZipFile(file, "w") as records:
            records.writestr("in/data.pkl", damaged)
    else:
        file.write_bytes(damaged)
    with pytest.raises(InputError, match="may be damaged") as raised:
        first_look(file)
    assert str(raised.value).removeprefix(f"{file}: ") in refusal(file)
    first_look(file, trusted=True)


def test_the_page_has_all_of_them() -> None:
    words = {"raw": "as trained", "averaged": "averaged", "masked": "as trained"}
    rows = [f"| {x.project} | {x.keys} | {x.where} | {words.get(x.taken, 'none')} |" for x in LAYOUTS]
    assert [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:] == rows
