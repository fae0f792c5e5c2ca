"""All advice that errors give, collected from the code, and where it is followed if not in ``advice_situations``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import slim_model

SOURCE = Path(slim_model.__file__).parent
_VERBS = (
    "add|ask|call|change|check|choose|did|export|free|give|install|leave|load|make|mend|name|put|repeat|say|start|take|try|"
    "use|write"
)
_ADVICE = re.compile(rf"(?:{_VERBS})\b", re.IGNORECASE)


def advice_of_errors() -> Iterator[str]:
    """Each sentence, or part of one behind a colon, of a raised error that begins by saying what to do; what is filled
    in is ``{}``."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                if not ast.unparse(node.exc.func).endswith("Error"):
                    continue
                said = " ".join(_text(node.exc.args[0]).split())
                yield from (part for part in re.split(r"(?<=[.:;?])\s+", said) if _ADVICE.match(part))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return _text(node.left) + _text(node.right) if isinstance(node, ast.BinOp) else ""


ELSEWHERE: dict[str, str] = {
    "Leave what it draws out in eval mode.": (
        "simplifying/test_take_means.py::test_decisions_from_values_are_not_followed_with_means"
    ),
    "Change to another one.": "cli/test_surroundings.py::test_a_working_folder_that_was_deleted",
    "Give the PyTorch model, of which one run is followed, or leave that out.": (
        "graph/test_stored_flags.py::test_a_program_with_such_sizes_is_refused_with_its_line"
    ),
    "Ask for {} to {}.": "cli/test_bad_input.py::test_an_opset_that_cannot_be_written",
    "Write it in another way, or add --save small.safetensors or small.pt:": (
        "cli/test_faults.py::test_what_onnx_has_no_form_for_is_said_before_the_work"
    ),
    "Export it again with this torch, or give the PyTorch model.": (
        "loading/test_words.py::test_a_program_that_torch_cannot_turn_into_a_module"
    ),
}
"""Followed by a test of its own."""

UNTRIED: frozenset[str] = frozenset(
    {
        "leave out --input.",
        "leave out --device.",
        "give an ONNX file its sizes with --input.",
        "add --data SPEC.",
        "Use the fp32 file.",
        "Leave it out.",
        "Give the fp32 file.",
        "Give more data.",
        "Export it with opset {} or later.",
        "Add it, or give --onnx OUT.onnx.",
        "Add it, or give --source IN.",
        "Change to another.",
        "Check inputs, labels and weights.",
        "Check that the model runs on them.",
        "Check the model's weights.",
        "Export it again with the torch installed here.",
        "Export it as torch.export.export(model, (tensor, ...), {'name':",
        "Free space or give another place.",
        "Give --input with all sizes, once per input, such as --input 1x3x224x224 or --input 1x16:int64.",
        "Give a .pt2 made by torch.export, or report the model.",
        "Give a file that --report wrote.",
        "Give a smaller rate than --lr {}, or check the data.",
        "Give another file, or delete it.",
        "Give another folder:",
        "Give another with --into.",
        "Give batches of (inputs, labels).",
        "Give class numbers from 0, one for each sample, or a loss of your own:",
        "Give one or the other.",
        "Give reports that --report wrote.",
        "Give several as 0.3,0.5.",
        "Give the PyTorch model it was exported from.",
        "Give the PyTorch model it was made from, or a .pt2 written by torch.export.",
        "Give the model file.",
        "Give the same command to go on with that one, or remove the file to begin anew.",
        "Install it:",
        "Leave --batch out.",
        "Leave axis 0 out of dynamic.",
        "Leave it out, and give it to slim-model run with the report of the point you choose.",
        "Leave out --finetune.",
        "Leave out --hints.",
        "Leave out measure=accuracy.",
        "Leave the option out to use the CPU.",
        "Leave them out of dynamic, or change that.",
        "Leave them out of dynamic.",
        "Mend it, or take it out of the folder.",
        "Name the other {}, or give one folder with a folder for each class.",
        "Put it in quotes.",
        "Put the layer in ignored_layers.",
        "Say where:",
        "Start slim-model in the folder where the model's code can be imported, or install the package it is from.",
        "Try .pt2.",
        "Use a criterion of weights, or leave them:",
        "Use a criterion of weights.",
        "Use a criterion without gradients, or operators that do not write in place.",
        "Use another criterion, or leave the layer as it is:",
        "Use another one.",
        "Write the file with numpy.savez.",
        "choose from {}",
        "choose from {}.",
        "give an example with 2 or more there.",
        "give no IN with it.",
        "give one for all, or one each",
        "write [{}], and its options below.",
    }
)
"""Given, and followed in no test yet. Nothing may be added."""
