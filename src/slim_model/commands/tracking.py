"""``--mlflow URI``: a run of the command as a run of MLflow, also where it fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slim_model import distributed
from slim_model.errors import InputError, SlimError, first_line
from slim_model.export.to_onnx import external_weights
from slim_model.recipe_files.job import Job
from slim_model.recipe_files.write import sections_of, without_login
from slim_model.reporting.headline import figures_for_machines
from slim_model.reporting.report import Report
from slim_model.version import __version__

_EXPERIMENT = "slim-model"
"""Where MLFLOW_EXPERIMENT_NAME, MLflow's own variable, names no other."""


@contextmanager
def tracked(job: Job, note: Callable[[str], None]) -> Iterator[Callable[[Report], None]]:
    """Log what is done inside with MLflow, where ``job`` asks for it: gives what takes the report.

    The options are its params, figures its metrics, the files that were written its artifacts. A run that fails is
    FAILED there, with the message as the tag ``error``; one that is interrupted is KILLED. Raises InputError where
    MLflow is not installed or cannot be reached. Where it fails at the end, ``note`` is told so, since the files are
    written.
    """
    if job.outputs.mlflow is None or distributed.rank() > 0:
        yield lambda report: None
        return
    run = _Run.start(job, job.outputs.mlflow)
    reports: list[Report] = []
    status, error = "FINISHED", ""
    try:
        yield reports.append
    except BaseException as failure:
        status = "FAILED" if isinstance(failure, Exception) else "KILLED"
        error = str(failure) if isinstance(failure, SlimError) else first_line(failure, named=True)
        raise
    finally:
        try:
            run.finish(job, reports, status, error)
        except Exception as lost:  # its own exceptions, and those of the network
            note(f"MLflow was not told how the run ended: {first_line(lost, named=True)}")


class _Run:
    """A run of MLflow that has begun."""

    def __init__(self, client: Any, number: str) -> None:
        self.client, self.number = client, number

    @classmethod
    def start(cls, job: Job, uri: str) -> _Run:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise InputError(
                f"--mlflow {without_login(uri)} needs MLflow: pip install mlflow, or mlflow-skinny."
            ) from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of the tables that it makes
        try:
            client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
            known = client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else client.create_experiment(name)
            tags = {"slim_model_version": __version__, "source": job.source.path.name}
            number = client.create_run(experiment, tags=tags, run_name=job.target.stem).info.run_id
        except Exception as error:  # its own exceptions, and those of the network
            raise InputError(f"--mlflow {without_login(uri)}: MLflow says: {first_line(error)}") from error
        return cls(client, number)

    def finish(self, job: Job, reports: list[Report], status: str, error: str) -> None:
        from mlflow.entities import Metric, Param, RunTag

        report = reports[0].as_dict() if reports else None
        sections = report["recipe"] if report else sections_of(job, job.target.parent)
        params = [Param(name, str(value)) for name, value in _options(sections)]
        metrics = [Metric(name, value, 0, 0) for name, value in _figures(report)] if report else []
        tags = [RunTag("error", error)] if error else []
        for first in range(0, len(params), 100):  # at most so many in a request
            self.client.log_batch(self.number, params=params[first : first + 100])
        self.client.log_batch(self.number, metrics=metrics, tags=tags)
        for place in _files(job, done=status == "FINISHED", reported=bool(reports)):
            self.client.log_artifact(self.number, str(place))
        self.client.set_terminated(self.number, status)


def _options(sections: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """``budget.ratio`` and its like, those that have a value."""
    for section, values in sections.items():
        items = values.items() if isinstance(values, dict) else [("", values)]
        yield from ((f"{section}.{key}".rstrip("."), v) for key, v in items if v not in (None, [], ""))


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of the small model, the same counts of the dense one, the proof's errors and the seconds."""
    yield from ((name, float(v)) for name, v in figures_for_machines(report).items() if v is not None)
    yield from ((f"dense.{name}", float(v)) for name, v in report["dense"].items())
    yield from ((f"proof.{name}", float(v)) for name, v in report["proof"].items() if isinstance(v, int | float))
    yield from ((f"seconds.{name}", float(v)) for name, v in report["seconds"].items())


def _files(job: Job, *, done: bool, reported: bool) -> Iterator[Path]:
    """What this run wrote: all of it where it is ``done``, what tells of it where it got as far as its report."""
    outputs = job.outputs
    if done:
        yield job.target
        weights = external_weights(job.target)
        yield from (weights,) if weights.exists() else ()
        yield from outputs.places
    elif reported:
        told = (outputs.report, outputs.html, outputs.summary, outputs.write_recipe)
        yield from (place for place in told if place)
