"""Refuse a ``torch.export`` or TorchScript archive that could do more than compute, before torch reads it.

``torch.export.load`` evaluates the symbolic sizes it finds as Python, calls any function below ``torch`` that
a node names, executes the guards, unpickles constants, and writes node names into Python code. TorchScript
cannot reach Python, but its operators can write files. Both are read here as text, with torch's own archive
reader, and must hold only what an exported model needs.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import pickle
import re
from typing import Any

import torch
from torch import nn

from slim_model.loading.limits import EXPRESSION_LETTERS, HIGHEST_POWER, LARGEST_NUMBER

#: What a node of an exported program may call.
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|map_impl|scan|associative_scan|while_loop|flex_attention"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\.sym_\w+|torch\._sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|xor|not_"
    r"|invert|lshift|rshift)"
)
#: Operators and kinds of object that reach files or the network. torchvision's layers carry the sentence "Couldn't
#: load custom C++ ops. This can happen if ...", which is no call.
_REACHES_OUT = re.compile(
    r"\b(save|from_file|read_file|write_file|load_tensor)\b"
    r"|(?<![\w.])ops\s*\.\s*(?!(?:aten|prim|prims|quantized|_quantized|torchvision|This can happen)\b)\w+"
    r"|\btorch\s*\.\s*classes\s*\.\s*(?!quantized\b)\w+|\bgetattr\s*\([^)]*\\"
)
#: The functions of sizes that sympy prints.
_SYMPY = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Abs|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|LessThan"
    r"|StrictLessThan|GreaterThan|StrictGreaterThan|And|Or|Not|Piecewise|ExprCondPair|floor|ceiling|FloorDiv"
    r"|ModularIndexing|Where|PythonMod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow"
    r"|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal"
    r"|ToFloat|Identity"
)
_POWERS = re.compile(r"Pow|LShift|PowByNatural|FloatPow")
_ARITHMETIC = (
    *(ast.Expression, ast.Name, ast.expr_context, ast.keyword, ast.Tuple, ast.BinOp, ast.operator),
    *(ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop),
)
_RECORDS = re.compile(
    r"models/model\.json|data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|extra/.*|\.data/\w+"
    r"|archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
)
_TREES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_DOTTED = re.compile(r"[\w \-+:/@=,.]*")


class Unsafe(Exception):
    """The archive holds something that loading or running it could execute."""


def vet_program(content: bytes) -> None:
    """Raise `Unsafe` unless the ``torch.export`` archive with these bytes can only compute."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    records = set(reader.get_all_records())
    for record in sorted(records):
        if not _RECORDS.fullmatch(record):
            raise Unsafe(f"it holds {record!r}")
    for record in sorted(records):
        if record.startswith(("models/", "data/")) and record.endswith(".json"):
            _vet_json(json.loads(reader.get_record(record)), "")
        elif record.endswith(".pt"):
            _vet_tensors(record, reader.get_record(record))


def _vet_tensors(record: str, content: bytes) -> None:
    try:
        # torch tries this first, and anything goes only where it failed
        torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise Unsafe(f"its {record} holds more than tensors") from error


def vet_script(content: bytes) -> None:
    """Raise `Unsafe` if the TorchScript archive with these bytes names an operator that reaches files."""
    reader = torch._C.PyTorchFileReader(io.BytesIO(content))
    for record in reader.get_all_records():
        if record.endswith((".py", ".pkl")) or "/" not in record:
            text = reader.get_record(record).decode("utf-8", "replace")
            if match := _REACHES_OUT.search(text):
                raise Unsafe(f"its {record} names {match[0]!r}")


def vet_names(model: nn.Module) -> None:
    """Raise `Unsafe` if something in ``model`` has a name that could be read as code, where names become code."""
    for name, _ in itertools.chain(model.named_modules(), model.named_parameters(), model.named_buffers()):
        if not _DOTTED.fullmatch(name):
            raise Unsafe(f"{name!r} is no name")


def _vet_json(value: Any, key: str) -> None:
    """Check every value below a key of the archive's JSON by what torch does with that key."""
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            if key in ("config", "as_string_to_argument") and not _DOTTED.fullmatch(inner_key):
                raise Unsafe(f"{inner_key!r} is no name")
            _vet_json(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            _vet_json(inner, key)
    elif value not in (None, "") and (problem := _problem(key, value)):
        raise Unsafe(problem)


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with a value under ``key``, or None."""
    text = str(value)
    if key in ("target", "as_operator"):
        fine = _OPERATORS.fullmatch(text) and not _REACHES_OUT.search(text.replace("torch.ops", ""))
        return None if fine else f"it calls {text!r}"
    if key == "expr_str":
        return None if _is_arithmetic(text) else f"the size {text!r} is no arithmetic"
    if key in ("name", "as_name", "forward_arg_names"):
        return None if text.isidentifier() else f"{text!r} is no name"
    if key in ("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name", "fqn"):
        return None if _DOTTED.fullmatch(text) else f"{text!r} is no name"
    if key in ("in_spec", "out_spec"):
        return None if _is_plain_tree(text) else f"its inputs or outputs are no tuples, lists or dicts: {text[:80]}"
    if key in ("use_pickle", "custom_obj_name", "class_fqn"):
        return "it holds a pickled object" if value else None
    if key == "path_name":
        return None if re.fullmatch(r"(weight|tensor)_\d+", text) else f"it holds {text!r}"
    return None


def _is_arithmetic(text: str) -> bool:
    """True for what sympy prints, such as ``2*Symbol('s0', positive=True) + 1``, and nothing more; nor are numbers
    there that take long to compute, as in ``9**9**9``."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) <= EXPRESSION_LETTERS else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in nodes:
        if _grows(node):
            return False
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or not _SYMPY.fullmatch(node.func.id):
                return False
        elif isinstance(node, ast.Constant):
            # sympy would evaluate a string given to any of its functions
            if isinstance(node.value, str) and not re.fullmatch(r"-?[\w.]+", node.value):
                return False
            if isinstance(node.value, int) and abs(node.value) > LARGEST_NUMBER:
                return False
        elif not isinstance(node, _ARITHMETIC):
            return False
    return bool(nodes)


def _grows(node: ast.AST) -> bool:
    """True for a power, or a shift to the left, by more than a small number or of something that has one inside."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        base, exponent = node.left, node.right
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _POWERS.fullmatch(node.func.id):
        if len(node.args) != 2:
            return True
        base, exponent = node.args
    else:
        return False
    while isinstance(exponent, ast.UnaryOp | ast.Call):  # -2, Integer(2)
        exponent = exponent.operand if isinstance(exponent, ast.UnaryOp) else (*exponent.args, exponent.func)[0]
    small = isinstance(exponent, ast.Constant) and str(exponent.value).lstrip("-").isdigit()
    if not small or abs(int(exponent.value)) > HIGHEST_POWER:  # type: ignore[attr-defined]
        return True
    inside = [n for n in ast.walk(base) if n is not base]
    return any(_grows(n) or _is_power(n) for n in (base, *inside))


def _is_power(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Pow | ast.LShift)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and bool(_POWERS.fullmatch(node.func.id))


def _is_plain_tree(text: str) -> bool:
    """True for a serialized pytree of built-in containers; others import the classes they name."""
    try:
        _, tree = json.loads(text)
    except ValueError:
        return False
    pending = [tree]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict) or node.get("type") not in (None, *_TREES) or "__enum__" in str(node):
            return False
        pending += node.get("children_spec", [])
    return True
