"""Checkpoints of Ultralytics in and out: what ``YOLO("small.pt")`` does with the small one. Needs the package."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from command_runs import QUICK
from drawn_boxes import draw_data_set
from slim_model.cli import run
from slim_model.loading.load import load
from slim_model.loading.source import SourceOptions

ultralytics: Any = pytest.importorskip("ultralytics")
tasks: Any = pytest.importorskip("ultralytics.nn.tasks")
options: Any = pytest.importorskip("ultralytics.utils").IterableSimpleNamespace
SIDE = 64
TRAINING = {"epochs": 1, "imgsz": SIDE, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "verbose": False}


def lively(model: Any) -> Any:
    """Scores of fresh weights are the same everywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the trainer writes it while it trains: averages in half precision, options in a class of its own."""
    model = lively(tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False))
    with torch.no_grad():
        for branch in model.model[-1].cv3:  # fresh scores are next to nothing
            branch[-1].bias.zero_()
    model.args = options(imgsz=SIDE, task="detect")
    path = tmp_path_factory.mktemp("yolo") / "last.pt"
    content = {"epoch": 3, "model": None, "ema": copy.deepcopy(model).half(), "updates": 9, "optimizer": {}}
    torch.save(content | {"train_args": {"imgsz": SIDE, "task": "detect"}, "version": "8"}, path)
    return path


@pytest.fixture(scope="module")
def small(checkpoint: Path) -> Path:
    """With the ONNX file beside it."""
    path = checkpoint.with_name("small.pt")
    assert run([str(checkpoint), str(path.with_suffix(".onnx")), "--save", str(path), "--ratio", "0.4", *QUICK]) == 0
    return path


def test_averages_are_taken_in_the_form_of_an_export(checkpoint: Path) -> None:
    subject = load(checkpoint)
    assert type(subject.model).__name__ == "DetectionModel"
    assert subject.inputs[0].shape == (1, 3, SIDE, SIDE)
    assert any("'ema', the averages" in note for note in subject.notes)
    with torch.no_grad():
        assert subject.model(*subject.inputs).shape == (1, 6, 84)


RAW = {
    "detect": ("yolov8n.yaml", "DetectionModel", {}),
    "segment": ("yolov8n-seg.yaml", "SegmentationModel", {"mask_coefficient": "mask_coefficients"}),
    "pose": ("yolov8n-pose.yaml", "PoseModel", {"kpts": "key_points"}),
    "turned boxes": ("yolov8n-obb.yaml", "OBBModel", {"angle": "angle"}),
}
"""By what a head tells: what it calls that beside boxes and scores, and what OUT.onnx does."""


@pytest.mark.parametrize("kind", RAW)
def test_raw_heads_are_what_the_own_head_decodes(kind: str, tmp_path: Path) -> None:
    """In the file by name; decoded by the head of small.pt they are what that tells of the same picture."""
    yaml, cls, besides = RAW[kind]
    out, small = tmp_path / "raw.onnx", tmp_path / "small.pt"
    whole = lively(getattr(tasks, cls)(yaml, nc=2, verbose=False))
    whole.args = options(imgsz=SIDE, task=kind)
    torch.save({"model": whole, "train_args": {"imgsz": SIDE}}, tmp_path / "in.pt")
    line = [str(tmp_path / "in.pt"), str(out), "--raw-heads", "--save", str(small), "--ratio", "0.4", *QUICK]
    assert run(line) == 0
    x, session = torch.rand(1, 3, SIDE, SIDE), onnxruntime.InferenceSession(str(out))
    names = [value.name for value in session.get_outputs()]
    assert names == ["boxes", "scores", *besides.values(), *(["masks"] if kind == "segment" else [])]
    raw = dict(zip(names, map(torch.from_numpy, session.run(None, {"images": x.numpy()})), strict=True))
    assert (raw["boxes"].shape, raw["scores"].shape) == ((1, 64, 84), (1, 2, 84))
    model = ultralytics.YOLO(str(small)).model.eval()
    with torch.no_grad():
        told, apart = model(x)
        if kind == "segment":
            told, masks = told
            assert torch.allclose(masks, raw["masks"], atol=1e-4)
        given = {own: raw[ours] for own, ours in {"boxes": "boxes", "scores": "scores", **besides}.items()}
        decoded = model.model[-1]._inference(given | {"feats": apart["feats"]})
    assert torch.allclose(decoded, told, atol=1e-3)  # of places up to 64 pixels


def test_boxes_are_compared_where_there_are_no_labels(checkpoint: Path, tmp_path: Path) -> None:
    data = draw_data_set(tmp_path / "boxes", train=20, val=4, side=SIDE)
    report = tmp_path / "report.json"
    line = [str(checkpoint), str(tmp_path / "out.onnx"), "--data", f"yolo:{data}", "--recover", "affine", "--report"]
    assert run([*line, str(report), "--ratio", "0.2", *(word for word in QUICK if word != "--quiet")]) == 0
    (did,) = (step["did"] for step in json.loads(report.read_text())["steps"] if step["name"] == "affine")
    assert 0 <= did["agreement_after"] <= 1


def test_arch_builds_by_the_librarys_yaml(tmp_path: Path) -> None:
    model = lively(ultralytics.YOLO("yolo11n-cls.yaml").model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    subject = load(tmp_path / "weights.pt", SourceOptions(arch="ultralytics:yolo11n-cls.yaml", inputs=("1x3x64x64",)))
    with torch.no_grad():
        assert torch.equal(subject.model(*subject.inputs), model.eval()(*subject.inputs)[0])


def test_the_library_uses_the_small_one(small: Path, tmp_path: Path) -> None:
    """It predicts, validates and exports; its export has the names, the shapes and the values of OUT.onnx."""
    data, yolo = draw_data_set(tmp_path / "boxes", train=4, val=4, side=SIDE), ultralytics.YOLO(str(small))
    assert sum(p.numel() for p in yolo.model.parameters()) < 0.5 * 3.2e6
    picture = next((tmp_path / "boxes").rglob("*.png"))
    assert len(yolo.predict(str(picture), imgsz=SIDE, verbose=False, device="cpu")) == 1
    yolo = ultralytics.YOLO(str(small))
    exported = Path(yolo.export(format="onnx", imgsz=SIDE, simplify=False, dynamic=False))
    ours = small.with_suffix(".onnx")
    graphs = [onnx.load(path).graph for path in (ours, exported)]
    named = [[value.name for value in (*graph.input, *graph.output)] for graph in graphs]
    assert named[0] == named[1] == ["images", "output0"]
    x = torch.rand(1, 3, SIDE, SIDE).numpy()
    values = [onnxruntime.InferenceSession(str(path)).run(None, {"images": x})[0] for path in (ours, exported)]
    assert abs(values[0] - values[1]).max() <= 1e-3  # of boxes up to 64 pixels
    assert data.exists()


def test_the_library_trains_the_small_one_on(small: Path, tmp_path: Path) -> None:
    """With the trainer of docs/libraries.md; without it the dense model would be built, and a message says so."""
    pytest.importorskip("polars")
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Small(DetectionTrainer):  # type: ignore[misc]
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return weights

    data = draw_data_set(tmp_path / "boxes", train=4, val=4, side=SIDE)
    yolo = ultralytics.YOLO(str(small))
    before = sum(p.numel() for p in yolo.model.parameters())
    wanted = TRAINING | {"data": str(data), "project": str(tmp_path / "runs")}
    yolo.train(trainer=Small, **wanted)
    again = ultralytics.YOLO(str(yolo.trainer.last))
    assert sum(p.numel() for p in again.model.parameters()) == before
    with pytest.raises(KeyError, match="made smaller"):
        ultralytics.YOLO(str(small)).train(**wanted)
