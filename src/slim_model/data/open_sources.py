"""The user's samples, opened once: what is calibrated on, tested on and trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from slim_model.data.batches import Data
from slim_model.data.holdout import TakesBatches
from slim_model.data.open_data import OpenedData, open_data, read_source
from slim_model.data.options import DataOptions
from slim_model.data.training_samples import Samples, open_samples


@dataclass(frozen=True, slots=True)
class Sources:
    """``calibration``: for criteria and recovery. ``test``: what accuracy is read from; None where the data has no test
    part. ``training``: what is fine-tuned on; None where nothing is. All are None without data."""

    calibration: Data | None = None
    test: Data | None = None
    training: Samples | None = None


def open_sources(options: DataOptions, graph: TakesBatches, *, seed: int, training: bool) -> Sources:
    """Open what the user calls data, in batches that fit the inputs of ``graph``. Raises InputError."""
    if options.data is None:
        return Sources()
    train = read_source(options.data, graph.inputs, "train")
    if training and isinstance(train.samples, Iterator):  # it is read twice, and can be read once
        train = OpenedData(train.name, list(train.samples))
    open_part = partial(
        open_data,
        example=graph.inputs,
        batch=options.batch,
        mean=options.mean,
        std=options.std,
        seed=seed,
        fixed_batch=not graph.dynamic_batch,
        names=graph.input_names,
    )
    calibration = open_part(train, samples=options.calibrating)
    test = open_part(options.data, samples=options.test_samples, split="test") if calibration.parted else None
    samples = None
    if training:
        samples = open_samples(train, graph.inputs, mean=options.mean, std=options.std, names=graph.input_names)
    return Sources(calibration, test, samples)
