"""Ultralytics: YOLO and RT-DETR. Only the installed package is called; nothing of it is copied here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from slim_model.calling.boxes import BoxForm
from slim_model.errors import InputError
from slim_model.loading.input_spec import describe_error
from slim_model.loading.libraries.builders import imported
from slim_model.loading.libraries.table import NO_RAW_HEADS, InUse

_SIDE = 640
"""Of the pictures that its models are made for, where nothing says another."""

_OUTPUTS = {
    "Detect": "for each anchor the centre x and y, width and height of a box in pixels, then a score for each class",
    "Segment": "as of Detect, then mask coefficients; output1 has the masks that they weigh",
    "Pose": "as of Detect, then x, y and visibility of each key point",
    "OBB": "as of Detect, then the angle of the box",
    "RTDETRDecoder": "for each query the centre, width and height of a box as shares of the picture, then scores",
    "Classify": "a probability for each class",
}
"""What ``output0`` is, by the head's class; the library's own export has it so, ahead of non-maximum suppression."""
_END_TO_END = "for each of the best boxes x1, y1, x2, y2, score and class"

_RAW_BESIDE = {"Segment": ("mask_coefficients", "masks"), "Pose": ("key_points",), "OBB": ("angle",)}
"""What heads give raw beside boxes and scores, in their order."""

_REBUILT = (
    "this model was made smaller, and no yaml says its layers. Train it as it is: "
    "model.train(trainer=T), where T is a trainer whose get_model(self, cfg, weights, verbose) returns weights"
)
"""Stands where the library would look up the first layer's class to build the dense model again, and is its message."""


def builder(name: str) -> Callable[..., nn.Module]:
    """Of a configuration that the library has, or of a ``.yaml`` here."""
    ultralytics: Any = imported("ultralytics")
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"  # a name alone would be downloaded

    def create(*, num_classes: int | None = None) -> nn.Module:
        try:
            whole = ultralytics.YOLO(file)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"ultralytics has no model {file!r}: {describe_error(error)}.") from error
        if num_classes is None:
            return whole.model  # type: ignore[no-any-return]
        make = whole.task_map[whole.task]["model"]
        return make(copy.deepcopy(whole.model.yaml), nc=num_classes, verbose=False)  # type: ignore[no-any-return]

    return create


def in_use(model: nn.Module, raw: bool = False) -> InUse:
    """Put the model's head into the form of an export: it gives what ``_OUTPUTS`` says alone, without what trains; or
    ``raw``, what it decodes boxes from. Raises InputError where there is no such thing."""
    head = _head(model)
    if raw:
        return _raw(model, head)
    if not hasattr(type(head), "export"):
        return InUse(inputs=("images",), sides=_sides(model))
    notes = []
    if getattr(head, "one2one_cv2", None) is not None and hasattr(head, "fuse"):
        head.fuse()
        notes.append("of its two heads the one that is not used was left out: the small model cannot be trained on")
    _as_exported(head)
    kind, alone = _kind(head), getattr(head, "end2end", False)
    meaning = _END_TO_END if alone else _OUTPUTS.get(kind, "")
    count = 2 if kind == "Segment" else 1
    if meaning:
        notes.append(f"output0 is, as in the library's own export: {meaning}")
    keep = tuple(_scaled_by_width(model))
    boxes = BoxForm(None, by_place=True, corners=True) if alone else _boxes(kind, getattr(head, "nc", 0))
    return InUse(("images",), tuple(f"output{i}" for i in range(count)), _sides(model), keep, boxes, tuple(notes))


def _raw(model: nn.Module, head: Any) -> InUse:
    """The head's sums for boxes, scores and the rest, each ``(N, values, anchors)``, ahead of any decoding."""
    if not hasattr(type(head), "_inference") or getattr(head, "end2end", False):
        raise InputError(f"holds a model that ends in {type(head).__name__}, {NO_RAW_HEADS}")
    _as_exported(head)
    head._inference = _apart
    note = (
        "the outputs are raw: for each anchor 16 values for each side of a box, whose softmax weighs the distances 0 "
        "to 15; the scores of the classes ahead of their sigmoid; then what else the head gives"
    )
    outputs = ("boxes", "scores", *_RAW_BESIDE.get(_kind(head), ()))
    return InUse(("images",), outputs, _sides(model), tuple(_scaled_by_width(model)), notes=(note,))


def _apart(predictions: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """In place of the head's own decoding."""
    return tuple(predictions[name] for name in predictions if name not in ("feats", "proto"))


def _as_exported(head: Any) -> None:
    head.export, head.format, head.dynamic = True, "onnx", True  # dynamic: anchors follow from sizes at every call


def _kind(head: nn.Module) -> str:
    return next((cls.__name__ for cls in type(head).__mro__ if cls.__name__ in _OUTPUTS), "")


def _boxes(kind: str, classes: int) -> BoxForm | None:
    """How the first output tells them; turned boxes are taken as upright ones."""
    if kind == "RTDETRDecoder":
        return BoxForm(classes, by_place=True)
    return BoxForm(classes, overlapping=True) if kind in ("Detect", "Segment", "Pose", "OBB") else None


def file_of(small: nn.Module, beside: Mapping[str, Any]) -> dict[str, Any]:
    """The small model in a checkpoint that ``YOLO("small.pt")`` takes: predicts, validates and exports with."""
    ultralytics: Any = imported("ultralytics")
    model: Any = copy.deepcopy(small)
    head = _head(model)
    for name in ("export", "format", "dynamic", "shape", "anchors", "strides", "_inference"):
        vars(head).pop(name, None)  # back to what the class has
    described = getattr(model, "yaml", None)
    if isinstance(described, dict) and described.get("backbone"):
        first = [-1, 1, _REBUILT, []]
        model.yaml = described | {"backbone": [first, *described["backbone"][1:]]}
    arguments = _arguments(model)
    model.args = arguments
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": beside.get("train_args") or arguments,
        "date": beside.get("date"),
        "version": ultralytics.__version__,
    }


def _head(model: nn.Module) -> Any:
    layers = getattr(model, "model", None)
    return layers[-1] if isinstance(layers, nn.Sequential) and len(layers) else model


def _arguments(model: nn.Module) -> dict[str, Any]:
    arguments = getattr(model, "args", {})
    return dict(vars(arguments)) if isinstance(arguments, SimpleNamespace) else dict(arguments)


def _sides(model: nn.Module) -> tuple[int, ...]:
    side = _arguments(model).get("imgsz")
    return (side,) if isinstance(side, int) and 0 < side < 10_000 else (_SIDE,)


def _scaled_by_width(model: nn.Module) -> Iterator[str]:
    """Layers of attention whose forward takes its scale from the width of a head: with another it is another."""
    for name, module in model.named_modules():
        if type(module).__name__ == "AAttn":
            yield f"{name}.qkv.*"
