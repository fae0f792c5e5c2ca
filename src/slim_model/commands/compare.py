"""``slim-model compare A.json B.json``: reports of runs, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from slim_model.errors import InputError, first_line
from slim_model.recipe_files.versions import check_report
from slim_model.reporting.html.page import comparison_page, html_page


def read_reports(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Each report by the name of its file. Raises InputError where one cannot be read, or is no whole report."""
    reports: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            report = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file} is no JSON: {first_line(error)}. Give reports that --report wrote.") from error
        check_report(report, file)
        _check_whole(report, file)
        reports[str(file)] = report
    return reports


def _check_whole(report: Any, file: Path) -> None:
    """Raise InputError where ``report`` lacks what is shown of one, or has it in another form."""
    try:
        html_page(report)
        comparison_page({str(file): report})
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TemplateError) as error:
        why = first_line(error, named=True)
        raise InputError(f"{file} is no whole report ({why}). Give a file that --report wrote.") from error
