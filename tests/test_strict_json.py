"""Every file that machines read is JSON as its standard has it, whatever was measured."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

import slim_model
from slim_model.strict_json import strict_json

SOURCE = Path(slim_model.__file__).parent
OTHERS = {
    "budget/sensitivity.py": "a scan, which is read back",
    "cost/latency_store.py": "a cache, which is read back",
    "cli/schema.py": "a schema, without numbers of a run",
    "export/torch_files.py": "sizes and positions",
    "folders/write.py": "a configuration as it was given",
    "loading/rehearse.py": "an answer to the same process",
    "recipe_files/read.py": "a value that is quoted",
    "recipe_files/write.py": "text of a recipe, which is TOML",
    "reporting/explanation.py": "labels of a drawing",
}
"""What writes JSON by itself."""


@pytest.mark.parametrize("indent", [1, None])
def test_what_is_not_finite_is_null(indent: int | None) -> None:
    text = strict_json({"a": math.inf, "b": [math.nan, (1.5, -math.inf)], "c": {"ü": 1}}, indent=indent)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, [1.5, None]], "c": {"ü": 1}}
    assert text.endswith("}\n")
    assert text.isascii()


def test_nothing_else_writes_json_of_a_run() -> None:
    writers = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump")
    }
    assert writers - {"strict_json.py"} == OTHERS.keys()
