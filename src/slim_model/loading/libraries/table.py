"""One row a library: whose classes may load, how ``--arch`` builds its models, what they are in use, its files.

To add a library is to add its row. None of them is needed; nothing of one is imported before a file or ``--arch`` names
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from slim_model.calling.boxes import BoxForm
from slim_model.late import Late

NO_RAW_HEADS = "whose heads give nothing else than its outputs. Leave out --raw-heads."


@dataclass(frozen=True, slots=True)
class InUse:
    """What a model is when it is used, not trained: the names that the library's own export gives its ``inputs`` and
    ``outputs``, the ``sides`` of the pictures that it was made for, layers to ``keep`` for its own class to take the
    smaller ones, how the first output tells ``boxes``, and ``notes`` of what the outputs mean."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sides: tuple[int, ...] = ()
    keep: tuple[str, ...] = ()
    boxes: BoxForm | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Library:
    """What is known of the models of ``package``.

    ``layers``: modules in or below which a pickle's classes may load, where they are ``nn.Module`` or enums;
    ``functions``: pure functions of tensors that models keep as attributes, by where they live; ``settings``: classes
    that only hold options, taken as plain attributes; ``training``: attributes that only training uses, taken as None;
    ``texts``: attributes of its layers that are texts, though ``nn.Module`` has a method so called.
    ``builder``: (name) -> what builds the model of ``--arch package:name``; ``implied``: (builder, names in the file)
    -> arguments that follow from loading a state dict. ``in_use``: (model, whether its heads are wanted raw) ->
    ``InUse``, after the model was put into the form in which the library itself exports it. ``file``: (small module,
    what the file held beside the model) -> what ``torch.save`` writes for the library to load; its models are then kept
    in their own classes. ``version_key``: at the top of its checkpoints, for the version that wrote
    them; ``arguments``: (builder, what the file held beside the weights) -> those that it would call the builder with.
    """

    package: str
    layers: tuple[str, ...] = ()
    functions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    settings: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    builder: Callable[..., Any] | None = None
    implied: Callable[..., Any] | None = None
    in_use: Callable[..., Any] | None = None
    file: Callable[..., Any] | None = None
    version_key: str = ""
    arguments: Callable[..., Any] | None = None


_ACTIVATIONS = (
    "celu elu gelu glu hardsigmoid hardswish hardtanh leaky_relu log_softmax logsigmoid mish prelu relu relu6 rrelu "
    "selu sigmoid silu softmax softmin softplus softsign tanh tanhshrink"
)

LIBRARIES = (
    Library(
        "torch",
        layers=("torch.nn.modules",),
        functions={"torch.nn.functional": _ACTIVATIONS, "torch._C._nn": "gelu log_sigmoid softplus"},
    ),
    Library(
        "torchvision",
        layers=("torchvision.models", "torchvision.ops"),
        builder=Late("loading.libraries.builders:torchvision_builder"),
        implied=Late("loading.libraries.builders:implied_in_torchvision"),
    ),
    Library(
        "timm",
        layers=("timm.models", "timm.layers"),
        functions={
            "timm.layers.activations": "gelu gelu_tanh hard_mish hard_sigmoid hard_swish mish prelu quick_gelu sigmoid "
            "swish tanh"
        },
        builder=Late("loading.libraries.builders:timm_builder"),
    ),
    Library("transformers", builder=Late("loading.libraries.builders:transformers_builder")),
    Library(
        "segmentation_models_pytorch",
        layers=(
            "segmentation_models_pytorch.base",
            "segmentation_models_pytorch.decoders",
            "segmentation_models_pytorch.encoders",
        ),
        builder=Late("loading.libraries.builders:segmentation_builder"),
    ),
    Library(
        "ultralytics",
        layers=("ultralytics.nn.modules", "ultralytics.nn.tasks"),
        settings=("ultralytics.utils.IterableSimpleNamespace",),
        training=("criterion",),
        texts=("type",),
        builder=Late("loading.libraries.ultralytics:builder"),
        in_use=Late("loading.libraries.ultralytics:in_use"),
        file=Late("loading.libraries.ultralytics:file_of"),
    ),
    Library(
        "lightning",
        version_key="pytorch-lightning_version",
        arguments=Late("loading.libraries.lightning:arguments"),
    ),
)


def library_named(package: str) -> Library | None:
    """The row of ``package``."""
    return next((library for library in LIBRARIES if library.package == package), None)


def library_that_wrote(beside: Mapping[str, Any]) -> Library | None:
    """The row whose version stands in what a checkpoint holds beside its weights."""
    return next((library for library in LIBRARIES if _version(library, beside)), None)


def version_that_wrote(beside: Mapping[str, Any]) -> str:
    """``"lightning 2.4.0"``, or nothing."""
    library = library_that_wrote(beside)
    return f"{library.package} {_version(library, beside)}" if library is not None else ""


def _version(library: Library, beside: Mapping[str, Any]) -> str:
    found = beside.get(library.version_key)
    return found[:20] if isinstance(found, str) and found.isprintable() else ""


def packages() -> tuple[str, ...]:
    """Whose classes pickles may hold, and whose operators archives may call once it is imported."""
    return tuple(library.package for library in LIBRARIES if library.layers)


def is_function(module: str, name: str) -> bool:
    """Whether it is one that a model may keep as an attribute."""
    return any(name in library.functions.get(module, "").split() for library in LIBRARIES)


def is_setting(name: str) -> bool:
    """Whether the class of that name only holds options."""
    return any(name in library.settings for library in LIBRARIES)


def is_text(name: str) -> bool:
    """Whether layers of some library have a text in this attribute."""
    return any(name in library.texts for library in LIBRARIES)


def library_with(module: str) -> Library | None:
    """The row of which ``module`` (``timm.layers.mlp``) is one that may load."""
    parts = module.split(".")
    above = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    known = all(part.isidentifier() for part in parts)
    return next((library for library in LIBRARIES if known and above & set(library.layers)), None)


def library_of(model: nn.Module) -> Library | None:
    """The row of the library that the class of ``model`` is from."""
    return library_with(type(model).__module__)
