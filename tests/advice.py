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
    "Leave out --data and --recover, or give OUT.onnx.": (
        "folders/test_slim_folder.py::test_a_folder_becomes_an_onnx_file"
    ),
    "Leave out fine-tuning, recovery by training and criteria that take gradients.": (
        "from_onnx/test_kept.py::test_a_gradient_through_a_kept_node_is_refused"
    ),
    "Leave out --residual, or give OUT.onnx, where it can go.": (
        "folders/test_slim_folder.py::test_a_folder_becomes_an_onnx_file"
    ),
    "Leave out --residual, or save the model with its head.": (
        "folders/test_residual.py::test_a_folder_with_fewer_hidden_channels_computes_what_is_kept"
    ),
    "Leave out --finetune, or train the folder that is written elsewhere:": (
        "folders/test_folder_finetune.py::test_memory_is_asked_for_ahead_of_the_work"
    ),
    "Leave it out, or give a folder whose model has its head.": (
        "folders/test_folder_finetune.py::test_a_folder_learns_from_the_dense_model"
    ),
    "Give more.": ("folders/test_folder_finetune.py::test_a_folder_learns_from_the_dense_model"),
    "Give a smaller rate than --lr {}.": ("folders/test_folder_finetune.py::test_a_folder_learns_from_the_dense_model"),
    "Give that.": "folders/test_families.py::test_a_folder_comes_out_smaller_and_computes_what_is_kept",
    "Give the folder of a transformers model, or its config.json.": (
        "cli/test_plan_command.py::test_a_configuration_and_its_folder_have_one_plan"
    ),
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
    "Put the layer in ignored_layers.": (
        "budget/test_torch_pruning.py::test_a_group_that_must_stay_is_refused_with_the_remedy"
    ),
    "Give small.pt2 or small.pt, which hold the model, too.": (
        "cli/test_onnx_in.py::test_weights_alone_say_nothing_without_the_file"
    ),
}
"""Followed by a test of its own."""
