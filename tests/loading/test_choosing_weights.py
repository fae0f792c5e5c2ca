"""What is said where weights are chosen among several, or do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_layouts import INPUT, LAYOUTS, SOURCE, state
from model_files import opened, refusal

pytestmark = pytest.mark.usefixtures("clean_imports")


@pytest.fixture
def net(file: Path) -> dict[str, Any]:
    """The options that build ``Net``."""
    file.with_name("net.py").write_text(SOURCE)
    return {"arch": f"{file.with_name('net.py')}:Net", "inputs": [INPUT]}


RAW, AVERAGED = state(1), state(2)
#: What is written, and what the notes say of it.
NOTES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "plain": (RAW, ()),
    "of one, the place goes without saying": ({"model": RAW, "epoch": 3}, ()),
    "averages": (
        {"model": RAW, "ema": AVERAGED},
        ("the weights at 'ema' were taken; those at 'model' fit, too: --key model",),
    ),
    "averages that are the same": ({"model": RAW, "ema": dict(RAW)}, ("the weights at 'ema' were taken",)),
    "prefix": (
        {f"backbone.{n}": x for n, x in RAW.items()} | {"head.weight": torch.ones(2, 2)},
        ("the names in the file begin with 'backbone.', which was taken off; 1 tensors without it were left out",),
    ),
    "prefixes": (
        {f"student.{n}": x for n, x in RAW.items()} | {f"teacher.{n}": x for n, x in AVERAGED.items()},
        (
            "the names in the file begin with 'teacher.', which was taken off; 9 tensors without it were left out",
            "the weights below 'student.' fit, too: --prefix student.",
        ),
    ),
    "masks": (
        {n: x for n, x in RAW.items() if n != "conv.weight"}
        | {"conv.weight_orig": RAW["conv.weight"], "conv.weight_mask": torch.ones(4, 3, 3, 3)},
        ("1 masks of torch.nn.utils.prune were multiplied into their weights",),
    ),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_was_assumed_is_noted(file: Path, net: dict[str, Any], name: str) -> None:
    held, notes = NOTES[name]
    torch.save(held, file)
    assert opened(file, **net).notes == notes


@pytest.mark.parametrize(("key", "seed"), [("model", 1), ("ema", 2), ("ema.module", 2)])
def test_a_key_takes_the_others(file: Path, net: dict[str, Any], key: str, seed: int) -> None:
    torch.save({"model": state(1), "ema": {"module": state(2), "updates": 3}}, file)
    taken = opened(file, **net, key=key).model.state_dict()
    assert torch.equal(taken["fc.weight"], state(seed)["fc.weight"])


#: What is written, the options, and words of the refusal.
REFUSALS: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "no such key": (
        {"G": RAW, "D": {"x.weight": torch.ones(2)}},
        {"key": "netG"},
        ("no weights at --key netG", "'G' (9 tensors), 'D' (1 tensors)"),
    ),
    "no such prefix": (
        {"body.a": torch.ones(2), "head.b": torch.ones(2)},
        {"prefix": "backbone."},
        ("--prefix backbone.: no name begins so", "body, head"),
    ),
    "two that fit": ([RAW, AVERAGED], {}, ("several weights that fit, at '0', '1'", "--key 0")),
    "none that fits": (
        {"G": {"a.weight": torch.ones(2)}, "D": {"b.weight": torch.ones(2)}},
        {},
        ("8 missing in the file (conv.weight, ", "1 not in the model (a.weight)", "'G' (1 tensors), 'D' (1 tensors)"),
    ),
    "names that the model lacks": (
        RAW | {"aux.weight": torch.ones(2), "aux.bias": torch.ones(2)},
        {},
        ("2 not in the model (aux.weight, aux.bias)", "--no-strict goes on"),
    ),
    "names that the file lacks": (
        {n: x for n, x in RAW.items() if n != "fc.bias"},
        {},
        ("1 missing in the file (fc.bias)", "--no-strict goes on: what the file lacks then stays untrained"),
    ),
    "shapes do not pass": (
        RAW | {"conv.weight": torch.ones(4, 3, 5, 5), "aux.weight": torch.ones(2)},
        {"strict": False},
        ("conv.weight is 4x3x5x5 and should be 4x3x3x3", "1 not in the model (aux.weight)"),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_named(file: Path, net: dict[str, Any], name: str) -> None:
    held, options, says = REFUSALS[name]
    torch.save(held, file)
    message = refusal(file, **net | options)
    for words in says:
        assert words in message


@pytest.mark.parametrize("remedy", [{"key": "0"}, {"key": "1"}])
def test_the_keys_that_a_message_names_work(file: Path, net: dict[str, Any], remedy: dict[str, Any]) -> None:
    torch.save([RAW, AVERAGED], file)
    assert opened(file, **net, **remedy).kind == "state dict"


def test_names_that_do_not_fit_may_pass(file: Path, net: dict[str, Any]) -> None:
    held = {n: x for n, x in RAW.items() if n != "fc.bias"} | {"aux.weight": torch.ones(2)}
    torch.save(held, file)
    subject = opened(file, **net, strict=False)
    assert torch.equal(subject.model.state_dict()["fc.weight"], RAW["fc.weight"])
    assert subject.notes == (
        "1 missing in the file (fc.bias): they keep the values they were built with, untrained",
        "1 not in the model (aux.weight): they were left out",
    )


@pytest.mark.parametrize(
    "body",
    [
        "super().load_state_dict(state_dict, strict=False)",  # as super-resolution nets have it: nothing is returned
        "own = self.state_dict(); [own[n].copy_(x) for n, x in state_dict.items()]",
        "raise KeyError('not my form')",
    ],
)
def test_a_class_with_a_loading_of_its_own(file: Path, net: dict[str, Any], body: str) -> None:
    source = SOURCE + f"\n    def load_state_dict(self, state_dict, strict=True):\n        {body}\n"
    file.with_name("net.py").write_text(source)
    torch.save(RAW, file)
    taken = opened(file, **net).model.state_dict()
    assert all(torch.equal(taken[name], RAW[name]) for name in RAW)
    torch.save(RAW | {"aux.weight": torch.ones(2)}, file)
    assert "not in the model (aux.weight)" in refusal(file, **net)


def test_the_size_of_training_pictures_is_taken_from_the_file(file: Path, net: dict[str, Any]) -> None:
    """Ultralytics keeps it beside the model. The net takes any size, and its outputs depend on it."""
    source = SOURCE.replace("self.fc(self.bn(self.conv(x)).relu().flatten(1))", "self.bn(self.conv(x)).relu()")
    file.with_name("net.py").write_text(source)
    net.pop("inputs")
    layout = next(x for x in LAYOUTS if x.project == "Ultralytics")
    layout.save(file)
    subject = opened(file, **net)
    assert tuple(subject.inputs[0].shape) == (1, 3, 8, 8)
    assert any("8x8 was taken: the file says" in note for note in subject.notes)


def test_the_first_failure_of_a_guess_is_told(file: Path, net: dict[str, Any]) -> None:
    """The last try has a batch for channels, and its failure says nothing."""
    file.with_name("net.py").write_text(SOURCE.replace("nn.Linear(144, classes)", "nn.Linear(143, classes)"))
    torch.save(RAW | {"fc.weight": torch.ones(3, 143)}, file)
    net.pop("inputs")
    assert "1x3x224x224 failed with" in refusal(file, **net)
