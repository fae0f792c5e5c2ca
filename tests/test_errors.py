"""What is said of an exception."""

from __future__ import annotations

import pytest
import torch

from slim_model.errors import InputError, first_line


def test_the_first_line_is_said_and_no_more() -> None:
    error = ValueError("  no such layer \r\n in this model\nat all")
    assert first_line(error) == "no such layer"
    assert first_line(error, named=True) == "ValueError: no such layer"
    assert first_line(error, named=True, at_most=13) == "ValueError: n"


@pytest.mark.parametrize("said", ["", "  ", "\n"], ids=repr)
def test_an_exception_that_says_nothing_is_named(said: str) -> None:
    assert first_line(AssertionError(said)) == first_line(AssertionError(said), named=True) == "AssertionError"


def test_names_of_libraries_exceptions_are_whole() -> None:
    assert first_line(InputError("x"), named=True) == "slim_model.errors.InputError: x"
    assert first_line(torch.OutOfMemoryError("x"), named=True) == "torch.OutOfMemoryError: x"


def test_an_error_inside_a_graph_says_its_own_words() -> None:
    """PyTorch's interpreter adds the node and the traceback to what passes it."""

    class Refusing(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> None:
            raise InputError("not so.")

    with pytest.raises(InputError, match=r"^not so\.$"):
        Refusing(torch.fx.symbolic_trace(torch.nn.ReLU())).run(torch.ones(1))
