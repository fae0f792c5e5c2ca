"""Checkpoints in the form of Lightning, whose class is called with the options that it kept; written without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_files import opened, refusal

INPUT = ["1x3x8x8"]
SOURCE = """
from torch import nn

class LightningModule(nn.Module):
    pass

class Net(nn.Module):
    def __init__(self, width=4, bias=True):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3, bias=bias), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

class Lit(LightningModule):
    def __init__(self, width, lr, bias=True):
        super().__init__()
        self.model = Net(width, bias)

    def forward(self, x):
        return self.model(x)

class Any(Lit):
    def __init__(self, **options):
        super().__init__(options["width"], options["lr"])

class Together(Lit):
    def __init__(self, hparams):
        super().__init__(hparams.width, hparams["lr"])

def function(width, **rest):
    assert not rest
    return Lit(width, 0.1)
"""


class AttributeDict(dict[str, Any]):
    """As Lightning's own, in older versions."""


class Foreign:
    """Stands for what training was told besides: a loss, an optimizer."""


@pytest.fixture
def net(file: Path) -> Path:
    path = file.with_name("net.py")
    path.write_text(SOURCE)
    return path


def weights(width: int, bias: bool = True) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(3, width, 3, bias=bias), nn.Linear(width, 5)
    parts = {"conv": conv, "fc": fc}
    return {f"model.{part}.{name}": x for part in parts for name, x in parts[part].state_dict().items()}


def save(path: Path, options: Any, width: int = 7, key: str = "hyper_parameters", **besides: Any) -> None:
    """As its trainer does."""
    content = {"epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.4.0", "state_dict": weights(width)}
    content |= {"loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], key: options}
    torch.save(content | besides, path)


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams"])
@pytest.mark.parametrize("name", ["Lit", "Any", "Net", "function"])
def test_its_class_is_called_with_the_options_that_it_kept(
    file: Path, net: Path, name: str, key: str, clean_imports: None
) -> None:
    """A LightningModule that takes any is given all; a function, or the net inside, only what it names."""
    save(file, {"width": 7, "lr": 0.1}, key=key)
    subject = opened(file, arch=f"{net}:{name}", inputs=INPUT)
    wanted = {n.removeprefix("model."): x for n, x in weights(7).items()}
    taken = {n.removeprefix("model."): x for n, x in subject.model.state_dict().items()}
    assert taken.keys() == wanted.keys()
    assert all(torch.equal(taken[name], wanted[name]) for name in wanted)
    lr = ", lr=0.1" if name in ("Lit", "Any") else ""
    assert f"lightning 2.4.0 wrote the file; of its options these were taken as arguments: width=7{lr}" in subject.notes


def test_options_may_be_one_argument(file: Path, net: Path, clean_imports: None) -> None:
    """In a class of Lightning's own, which was not loaded, too."""
    save(file, AttributeDict(width=7, lr=0.1), hparams_name="hparams")
    subject = opened(file, arch=f"{net}:Together", inputs=INPUT)
    assert subject.model.model.conv.out_channels == 7  # type: ignore[union-attr]


def test_what_the_user_says_comes_first(file: Path, net: Path, clean_imports: None) -> None:
    save(file, {"width": 99, "lr": 0.1})
    for call in ("Lit(width=7)", "Lit(7, 0.2)"):
        subject = opened(file, arch=f"{net}:{call}", inputs=INPUT)
        assert subject.model.model.conv.out_channels == 7  # type: ignore[union-attr]


def test_options_of_other_classes_are_left_out(file: Path, net: Path, clean_imports: None) -> None:
    """They were not loaded; the plain ones beside them are taken."""
    save(file, {"width": 7, "lr": 0.1, "bias": Foreign(), "loss": Foreign()})
    subject = opened(file, arch=f"{net}:Lit", inputs=INPUT)
    assert subject.model.model.conv.bias is not None  # type: ignore[union-attr]


def test_without_arch_it_says_who_wrote_the_file(file: Path) -> None:
    save(file, {"width": 7})
    assert "lightning 2.4.0 wrote it: --arch path/train.py:CLASS calls CLASS with the options" in refusal(file)


def test_options_that_ask_for_all_memory_are_refused(file: Path, net: Path, clean_imports: None) -> None:
    """The file says how large the model is: it is built in a process of its own first."""
    save(file, {"width": 2**28, "lr": 0.1})
    assert "GiB of memory" in refusal(file, arch=f"{net}:Lit", inputs=INPUT)
