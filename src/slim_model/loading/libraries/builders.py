"""A name that follows ``--arch LIBRARY:`` -> what builds that model, without weights and without downloading any."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from slim_model.errors import InputError


def torchvision_builder(name: str) -> Callable[..., Any]:
    torchvision: Any = imported("torchvision")
    models = torchvision.models
    builder: Callable[..., Any] = models.get_model_builder(known("torchvision", name, models.list_models()))
    return builder


def implied_in_torchvision(builder: Any, state: Collection[str]) -> dict[str, Any]:
    """Nothing is downloaded or initialised for nothing, and the auxiliary heads are there if ``state`` has them."""
    kwargs: dict[str, Any] = {name: None for name in ("weights", "weights_backbone") if takes(builder, name)}
    model = inspect.signature(builder).return_annotation
    has_aux = any(re.search(r"(^|\.)aux", key, re.IGNORECASE) for key in state)
    for name, value in (("init_weights", False), ("aux_logits", has_aux), ("aux_loss", has_aux)):
        if takes(builder, name) or takes(model, name):
            kwargs[name] = value
    return kwargs


def timm_builder(name: str) -> Callable[..., Any]:
    timm: Any = imported("timm")
    name = name if timm.is_model(name) else known("timm", name, timm.list_models())

    def create(*, num_classes: int | None = None, **kwargs: Any) -> Any:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **kwargs)

    return create


def transformers_builder(name: str) -> Callable[..., Any]:
    """A model class, built from its own configuration with the arguments as its values."""
    transformers: Any = imported("transformers")
    cls = _module_class(transformers, "transformers", name)

    def create(**kwargs: Any) -> Any:
        return cls(cls.config_class(**kwargs))

    return create


def segmentation_builder(name: str) -> Callable[..., Any]:
    """An architecture (``Unet``), whose ``classes`` are ``num_classes`` too."""
    library: Any = imported("segmentation_models_pytorch")
    cls = _module_class(library, "segmentation_models_pytorch", name)

    def create(*, num_classes: int | None = None, **kwargs: Any) -> Any:
        classes = {} if num_classes is None else {"classes": num_classes}
        return cls(**{"encoder_weights": None} | classes | kwargs)

    return create


def imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"needs {package}. Install it: pip install {package.replace('_', '-')}") from error


def known(package: str, name: str, names: list[str]) -> str:
    """``name``, if it is one of ``names``."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names)
    also = f" Did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"{package} has no model {name!r}.{also}")


def takes(function: Any, argument: str) -> bool:
    """Whether its signature names the argument."""
    try:
        return argument in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _module_class(library: Any, package: str, name: str) -> Any:
    cls = getattr(library, name, None)
    if isinstance(cls, type) and issubclass(cls, nn.Module):
        return cls
    raise InputError(f"{package} has no model {name!r}.")
