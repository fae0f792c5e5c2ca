"""A folder -> its model in transformers, run in float32; what the layers read on data; logits and perplexity."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from slim_model.errors import InputError, first_line
from slim_model.folders.reading.checkpoint import open_checkpoint_folder
from slim_model.folders.reading.shards import are_pickled
from slim_model.folders.widths.sites import Site
from slim_model.ranking.evidence.moments import Covariances, Variances

_WHOLE = 1 << 30  # bytes of a model in float32 up to which it is turned into float32 as a whole
_TOKENS = 16384  # that go through the model at a time
_PICTURES = 32  # that go through at a time
_SOUND = 8000  # values of a sound: half a second at 16 kHz
_LOGITS = 2048  # tokens whose logits are held at a time


def library() -> Any:
    """transformers, which only folders need. Raises InputError where it is not installed."""
    try:
        found = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "folders need transformers, which is not installed here: pip install 'slim-model[hf]'."
        ) from error
    found.utils.logging.set_verbosity_error()
    found.utils.logging.disable_progress_bar()
    return found


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in eval mode. ``unsaid``: names that the class has and the folder has not, or the other way round."""

    model: Any
    unsaid: frozenset[str]


def load_folder(
    path: Path,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
    said: Mapping[str, Any] | None = None,
) -> Loaded:
    """The model of the folder, by transformers alone: no code of the folder runs, nothing is fetched. ``tensors``: to
    be taken in place of its own, with the configuration ``said`` where it has another. Raises InputError where
    transformers refuses."""
    transformers = library()
    if tensors is None and are_pickled(path):
        whole = open_checkpoint_folder(path)
        tensors = {name: whole.read(name) for name in whole.tensors}
    try:
        configs = transformers.AutoConfig
        local = {"trust_remote_code": False, "local_files_only": True}
        config = configs.from_pretrained(path, **local) if said is None else configs.for_model(**said)
        kind = class_of(transformers, config)
        torch.manual_seed(0)  # what the folder lacks is drawn, and shall be the same each time
        given: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
        if tensors is None:
            model, found = kind.from_pretrained(path, use_safetensors=True, **given)
        else:
            model, found = kind.from_pretrained(None, config=config, state_dict=dict(tensors), **given)
    except Exception as error:  # of a library, on files of other people: it fails in many ways
        raise InputError(f"transformers cannot load {path}: {first_line(error, named=True)}.") from error
    if found["mismatched_keys"] or found.get("error_msgs"):
        raise InputError(f"transformers cannot load {path}: shapes are not those of config.json: {found}.")
    return Loaded(model.eval(), frozenset({*found["missing_keys"], *found["unexpected_keys"]}))


def class_of(transformers: Any, config: Any) -> Any:
    """The class that config.json names, where it is one of transformers; else the one without a head."""
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    return kind if known else transformers.MODEL_MAPPING[type(config)]


@contextlib.contextmanager
def in_float32(model: nn.Module, whole: int = _WHOLE) -> Iterator[None]:
    """While it lasts the model computes in float32. One of more than ``whole`` bytes keeps its weights as they are:
    each module's are turned into float32 for the time of its call. Afterwards the small ones stay in float32."""
    if sum(p.numel() * 4 for p in model.parameters()) <= whole:
        model.float()
        yield
        return
    handles = []
    for module in model.modules():
        if any(p is not None and p.itemsize < 4 for p in module._parameters.values()):
            before, after = _in_float32_for_a_call()
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """While it lasts products of float32 matrices may be taken in bfloat16, summed in float32, where ``dtype`` is of 16
    bits: twice as fast on processors that have it, and as exact as the model is where it is used."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype.itemsize < 4 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _in_float32_for_a_call() -> tuple[Callable[..., None], Callable[..., None]]:
    held: list[tuple[Tensor, Tensor]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        for parameter in module._parameters.values():
            if parameter is not None and parameter.itemsize < 4:
                held.append((parameter, parameter.data))
                parameter.data = parameter.data.float()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        while held:
            parameter, own = held.pop()
            parameter.data = own

    return before, after


def inputs_of(model: Any, seed: int) -> dict[str, Tensor]:
    """Two random samples, by the names of the inputs."""
    draw, config, name = torch.Generator().manual_seed(seed), model.config, model.main_input_name
    if name == "pixel_values":
        return {name: _pictures(getattr(config, "vision_config", config), draw)}
    if name == "input_values":
        return {name: torch.randn(2, _SOUND, generator=draw)}
    if name == "input_features":
        heard = {name: torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=draw)}
        said = "decoder_input_ids"
        return heard | ({said: _words(config, draw)} if said in inspect.signature(model.forward).parameters else {})
    if hasattr(config, "vision_config"):
        return {name: _words(config.text_config, draw), "pixel_values": _pictures(config.vision_config, draw)}
    return {name: _words(config, draw)}


def _pictures(config: Any, draw: torch.Generator) -> Tensor:
    size = config.image_size
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    return torch.randn(2, config.num_channels, *sides, generator=draw)


def _words(config: Any, draw: torch.Generator) -> Tensor:
    return torch.randint(0, config.vocab_size, (2, min(32, longest(config))), generator=draw)


def longest(config: Any) -> int:
    """Tokens of a sequence that the model surely takes; RoBERTa's first positions are for padding."""
    said = getattr(config, "max_position_embeddings", None) or getattr(config, "max_target_positions", None)
    return max(1, (said or 512) - 2)


_OUTPUTS = (("logits",), ("text_embeds", "image_embeds"), ("text_embeds",), ("image_embeds",), ("last_hidden_state",))


@torch.no_grad()
def outputs_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits; of a model that compares words with pictures both in one row; where it has no head the last hidden
    state."""
    found = model(**inputs, return_dict=True)
    names = next(names for names in _OUTPUTS if all(name in found for name in names))
    return torch.cat([found[name] for name in names]).float()


Visit = Callable[[Covariances | None, Variances], None]


@dataclass(frozen=True, slots=True)
class Point:
    """A ``module``, ``values (row, value)`` made of what goes in and what comes out, and who is to ``visit`` as soon as
    all samples have passed, with the covariances of these values where they are asked for, and their variances."""

    module: nn.Module
    values: Callable[[Tensor, Tensor], Tensor]
    visit: Visit


@torch.no_grad()
def watch(model: Any, points: Sequence[Point], samples: Tensor, *, pairs: bool) -> None:
    """Run ``samples``, tokens ``(sequence, position)`` or pictures, through the model, past the ``points``. All
    sequences go through together where they fit, so that one layer's statistics are held at a time."""
    rows = math.inf if samples.is_floating_point() else samples.numel()  # of a picture only the model knows
    held: dict[int, tuple[Covariances | None, Variances]] = {}
    handles = [
        point.module.register_forward_hook(_watcher(number, point, rows, held, pairs=pairs))
        for number, point in enumerate(points)
    ]
    run_through(model, samples, handles)
    for number, found in held.items():
        points[number].visit(*found)


def run_through(model: Any, samples: Tensor, handles: Iterable[RemovableHandle]) -> None:
    """Run ``samples`` through the model below its head, some at a time, for the hooks of ``handles``, which are
    removed."""
    at_a_time = _PICTURES if samples.is_floating_point() else max(1, _TOKENS // samples.shape[1])
    try:
        for part in samples.split(at_a_time):
            model.base_model(**{model.main_input_name: part})
    finally:
        for handle in handles:
            handle.remove()


def what_is_read(model: Any, site: Site, visit: Visit) -> Point:
    """The point at which the reading layer of ``site`` takes in its inputs."""
    return Point(module_at(model, f"{site.layer}.{site.cut.module or site.cut.reads}"), lambda x, y: x, visit)


def module_at(model: Any, path: str) -> nn.Module:
    """The module whose name ends with ``path``, or is its end, as in a model that has no head. Raises InputError where
    there is none, or there are several."""
    found = [module for name, module in model.named_modules() if name and _meet(name, path)]
    if len(found) != 1:
        raise InputError(f"this version of transformers has no single layer {path}. Take one it was tested with: 5.")
    return found[0]


def _meet(name: str, path: str) -> bool:
    return f".{name}".endswith(f".{path}") or f".{path}".endswith(f".{name}")


def _watcher(
    number: int, point: Point, rows: float, held: dict[int, tuple[Covariances | None, Variances]], *, pairs: bool
) -> Callable[..., None]:
    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        together, alone = _moments(point.values(inputs[0], output).flatten(0, -2), pairs=pairs)
        if number in held:
            earlier, variances = held.pop(number)
            alone = variances.merge(alone)
            together = earlier.merge(together) if earlier and together else None
        if alone.count >= rows:
            point.visit(together, alone)
        else:
            held[number] = together, alone

    return after


def _moments(x: Tensor, *, pairs: bool) -> tuple[Covariances | None, Variances]:
    """Of ``(row, input)``: sums over rows in float32 products, kept in float64."""
    mean = x.mean(0, dtype=torch.float64)
    centred = x - mean.to(x.dtype)
    variances = Variances(len(x), (mean,), (centred.square().sum(0, dtype=torch.float64),))
    covariances = Covariances(len(x), (mean,), ((centred.T @ centred).double(),)) if pairs else None
    return covariances, variances


@torch.no_grad()
def perplexity(model: Any, tokens: Tensor) -> float:
    """``exp`` of the mean cross entropy of each next token, of ``tokens (sequence, position)``."""
    total, count = 0.0, 0
    for part in tokens.split(max(1, _LOGITS // tokens.shape[1])):
        logits = model(input_ids=part).logits[:, :-1].float()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        total, count = total + float(losses), count + part[:, 1:].numel()
    return math.exp(min(total / count, 700.0))
