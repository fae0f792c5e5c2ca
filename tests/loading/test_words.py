"""What is said of a model that does not run: its own line, whole, and what helps."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from model_files import opened, refusal
from slim_model.errors import whole_statement

LOWER = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(torch.relu(self.fc(x.{})))
"""


@pytest.mark.parametrize(
    ("dtype", "cast"), [(torch.float16, "half()"), (torch.bfloat16, "bfloat16()"), (torch.float64, "double()")]
)
def test_a_forward_that_asks_for_another_type_by_itself(tmp_path: Path, dtype: torch.dtype, cast: str) -> None:
    """The weights are turned into float32, so no type of ``--input`` helps; what is said to help does."""
    weights = {"fc.weight": (8, 6), "fc.bias": (8,), "out.weight": (3, 8), "out.bias": (3,)}
    torch.save({name: torch.ones(shape, dtype=dtype) for name, shape in weights.items()}, tmp_path / "in.pt")
    (tmp_path / "net.py").write_text(textwrap.dedent(LOWER).format(cast))
    given = {"arch": f"{tmp_path}/net.py:Net", "inputs": ["2x6"]}
    said = refusal(tmp_path / "in.pt", **given)
    assert "its weights are float32 here" in said
    assert f"Take .{cast} out of the forward" in said
    (tmp_path / "other.py").write_text(textwrap.dedent(LOWER).format("to(self.fc.weight.dtype)"))
    assert opened(tmp_path / "in.pt", **given | {"arch": f"{tmp_path}/other.py:Net"}).inputs[0].dtype is torch.float32


FAILING = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, x):
            return self.fc(
                torch.cat([x, x], 1),
            )
"""


def test_a_statement_of_several_lines_is_quoted_whole(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(8, 6), "fc.bias": torch.ones(8)}, tmp_path / "in.pt")
    (tmp_path / "net.py").write_text(textwrap.dedent(FAILING))
    said = refusal(tmp_path / "in.pt", arch=f"{tmp_path}/net.py:Net", inputs=["2x6"])
    assert "net.py:11: return self.fc(torch.cat([x, x], 1),))." in said
    assert said.count("(") == said.count(")")


def test_a_statement_that_cannot_be_read_to_its_end_says_so(tmp_path: Path) -> None:
    assert whole_statement(str(tmp_path / "none.py"), 3, "  x = f(") == "x = f(..."
    assert whole_statement(str(tmp_path / "none.py"), 3, "x = f(1)") == "x = f(1)"


META = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.meta = nn.Linear(6, 3)

        def forward(self, x):
            return self.meta(x)
"""


def test_a_program_that_torch_cannot_turn_into_a_module(tmp_path: Path) -> None:
    """Of a submodule called ``meta``; the PyTorch model, which is said to help, is read."""
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(textwrap.dedent(META), namespace)
    net = namespace["Net"]().eval()
    torch.export.save(torch.export.export(net, (torch.randn(2, 6),)), tmp_path / "in.pt2")
    assert "is an exported program that torch" in refusal(tmp_path / "in.pt2")
    torch.save(net.state_dict(), tmp_path / "in.pt")
    (tmp_path / "net.py").write_text(textwrap.dedent(META))
    assert opened(tmp_path / "in.pt", arch=f"{tmp_path}/net.py:Net", inputs=["2x6"]).model
