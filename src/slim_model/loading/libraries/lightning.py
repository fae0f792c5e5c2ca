"""Lightning (also as pytorch_lightning): the options that it keeps beside the weights. The package is not called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from slim_model.loading.libraries.builders import takes

_OPTIONS = ("hyper_parameters", "hparams", "module_arguments")
"""Where versions of Lightning keep what ``save_hyperparameters`` saw, the newest first."""


class _Options(dict[str, Any]):
    """Whose entries are attributes, too: modules that take all options as one argument read them so."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def arguments(builder: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    """Those that ``load_from_checkpoint`` calls the class with: of the options that the checkpoint keeps, the ones that
    ``builder`` names; all for a LightningModule that takes any; as one argument where they were saved as one."""
    kept: Mapping[str, Any] = next((beside[key] for key in _OPTIONS if isinstance(beside.get(key), Mapping)), {})
    options = {name: value for name, value in kept.items() if name.isidentifier()}
    together = beside.get("hparams_name")
    if isinstance(together, str) and together != "kwargs" and takes(builder, together):
        return {together: _Options(options)}
    named = {name: value for name, value in options.items() if takes(builder, name)}
    return options if _takes_any(builder) else named


def _takes_any(builder: Any) -> bool:
    """A function that takes any arguments may hand them to what takes none of these."""
    ancestors = inspect.getmro(builder) if inspect.isclass(builder) else ()
    if not any(cls.__name__ == "LightningModule" for cls in ancestors):
        return False
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(builder).parameters.values())
