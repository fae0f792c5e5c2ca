"""Checkpoints as projects write them, in small: one row for each, in the order of docs/checkpoints.md.

Classes of libraries that are not installed are made up under their names while a file is written, and forgotten then.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(144, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().flatten(1))
"""
INPUT = "1x3x8x8"


class Net(nn.Module):
    """As in ``SOURCE``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(144, 3)


def state(seed: int) -> State:
    """Weights that no other seed gives."""
    torch.manual_seed(seed)
    net = Net()
    net.bn.running_mean.normal_()
    return net.state_dict()


@dataclass(frozen=True, slots=True)
class Layout:
    """``make`` gives what is written, from the weights of training and their averages. ``taken``: "raw", "averaged", or
    a word of the refusal; ``where``: the key or prefix in the words of the document; ``options`` of the command."""

    project: str
    keys: str
    make: Callable[[State, State], Any]
    where: str
    taken: str = "raw"
    options: tuple[tuple[str, Any], ...] = ()
    write: Callable[[Any, Path], None] = torch.save

    def save(self, path: Path) -> None:
        with _foreign():
            self.write(self.make(state(1), state(2)), path)


# -- classes of others ---------------------------------------------------------------------------------------------

_OTHERS: dict[str, type] = {
    "yacs.config.CfgNode": dict,
    "easydict.EasyDict": dict,
    "addict.addict.Dict": dict,
    "mmengine.config.config.ConfigDict": dict,
    "mmengine.logging.history_buffer.HistoryBuffer": object,
    "omegaconf.dictconfig.DictConfig": object,
    "omegaconf.listconfig.ListConfig": object,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "ultralytics.nn.tasks.DetectionModel": nn.Module,
    "fastai.learner.Learner": object,
    "apex.amp.AmpState": object,
}


@contextlib.contextmanager
def _foreign() -> Iterator[None]:
    """The modules of ``_OTHERS``, for as long as pickle looks their classes up."""
    made = []
    for whole in _OTHERS:
        parts = whole.split(".")[:-1]
        for n in range(1, len(parts) + 1):
            name = ".".join(parts[:n])
            if name not in sys.modules:
                sys.modules[name] = ModuleType(name)
                made.append(name)
        setattr(sys.modules[".".join(parts)], whole.split(".")[-1], _class(whole))
    yield
    for name in made:
        del sys.modules[name]


_CLASSES: dict[str, type] = {}


def _class(whole: str) -> Any:
    module, _, name = whole.rpartition(".")
    if whole not in _CLASSES:
        _CLASSES[whole] = type(name, (_OTHERS[whole],), {"__module__": module, "__qualname__": name})
    return _CLASSES[whole]


def _object(whole: str, **attributes: Any) -> Any:
    made = _class(whole)()
    made.__dict__.update(attributes)
    return made


def _module(whole: str, weights: State) -> Any:
    """A whole model of a class that is not here."""
    made = _class(whole)()
    for name, part in Net().named_children():
        made.add_module(name, part)
    made.load_state_dict(weights)
    made.stride = torch.tensor([8.0, 16.0])
    return made


# -- ways to write ---------------------------------------------------------------------------------------------


def _pickled(held: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(held))


def _safetensors(held: Any, path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(held, path)


def _legacy(held: Any, path: Path) -> None:
    torch.save(held, path, _use_new_zipfile_serialization=False)


def _under(prefix: str, weights: State) -> State:
    return {prefix + name: x for name, x in weights.items()}


def _within(infix: str, weights: State) -> State:
    """``conv.weight -> conv.INFIXweight``"""
    return {name.replace(".", f".{infix}", 1): x for name, x in weights.items()}


def _averaged(weights: State) -> State:
    """As ``torch.optim.swa_utils.AveragedModel`` has it."""
    return {"n_averaged": torch.tensor(7)} | _under("module.", weights)


def _optimizer() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def _arrays(weights: State) -> dict[str, Any]:
    return {name: x.numpy() for name, x in weights.items()}


def _pruned(weights: State) -> State:
    masked = dict(weights)
    kept = masked.pop("conv.weight")
    noise = torch.where(kept > 0, 0.0, 5.0)
    return masked | {"conv.weight_orig": kept + noise, "conv.weight_mask": (noise == 0).float()}


def _nested(weights: State) -> dict[str, State]:
    found: dict[str, State] = {}
    for name, x in weights.items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = x
    return found


_META = {"epoch": 12, "best_acc1": torch.tensor(71.5), "arch": "net"}
_ARGS = argparse.Namespace(lr=0.1, milestones=[30, 60])
_OTHER = {"net.weight": torch.ones(2, 2), "net.bias": torch.ones(2)}


def _ldm(raw: State, averages: State) -> State:
    learned = {name for name, _ in Net().named_parameters()}
    short = {f"model_ema.{name.replace('.', '')}": averages[name] for name in learned}
    return _under("model.", raw | {n: averages[n] for n in raw if n not in learned}) | short | {
        "model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3), "betas": torch.ones(4),
    }  # fmt: skip


LAYOUTS = (
    Layout("PyTorch: `model.state_dict()`", "names", lambda r, e: r, "all"),
    Layout("PyTorch before 1.6", "names", lambda r, e: r, "all", write=_legacy),
    Layout("`pickle.dump` of a state dict", "names", lambda r, e: r, "all", write=_pickled),
    Layout("safetensors (timm on the Hub, accelerate, transformers)", "names", lambda r, e: r, "all", write=_safetensors),
    Layout("DataParallel, DistributedDataParallel", "`module.`", lambda r, e: _under("module.", r), "below `module.`"),
    Layout("DistributedDataParallel of a part", "`fc.module.`", lambda r, e: _within("module.", r), "all"),
    Layout("torch.compile", "`_orig_mod.`", lambda r, e: _under("_orig_mod.", r), "all"),
    Layout("torch.compile of a part", "`conv._orig_mod.`", lambda r, e: _within("_orig_mod.", r), "all"),
    Layout("torch.compile in DistributedDataParallel", "`module._orig_mod.`", lambda r, e: _under("module._orig_mod.", r), "below `module.`"),
    Layout("FSDP, full state dict", "`_fsdp_wrapped_module.`", lambda r, e: _under("_fsdp_wrapped_module.", r), "all"),
    Layout("activation checkpointing", "`_checkpoint_wrapped_module.`", lambda r, e: _within("_checkpoint_wrapped_module.", r), "all"),
    Layout("Lightning Fabric", "`model` of `_forward_module.`", lambda r, e: {"model": _under("_forward_module.", r), "step": 3}, "`model`"),
    Layout("SWA, an AveragedModel", "`model`, `swa_model` of `module.`, `n_averaged`", lambda r, e: {"model": r, "swa_model": _averaged(e)}, "`swa_model`", "averaged"),
    Layout("PyTorch's ImageNet example", "`state_dict` of `module.`, `arch`, `best_acc1`, `optimizer`", lambda r, e: _META | {"state_dict": _under("module.", r), "optimizer": _optimizer()}, "`state_dict`"),
    Layout("torchvision references", "`model`, `model_ema`, `optimizer`, `args`", lambda r, e: {"model": r, "model_ema": _averaged(e), "optimizer": _optimizer(), "args": _ARGS, "epoch": 3}, "`model_ema`", "averaged"),
    Layout("torchvision references without EMA", "`model`, `optimizer`, `lr_scheduler`, `args`", lambda r, e: {"model": r, "optimizer": _optimizer(), "lr_scheduler": {"last_epoch": 3}, "args": _ARGS}, "`model`"),
    Layout("timm", "`state_dict`, `state_dict_ema`, `amp_scaler`, `args`", lambda r, e: {"epoch": 9, "arch": "net", "state_dict": r, "state_dict_ema": e, "optimizer": _optimizer(), "version": 2, "args": _ARGS, "metric": 76.1}, "`state_dict_ema`", "averaged"),
    Layout("DeiT, ConvNeXt, DETR forks", "`model`, `model_ema`", lambda r, e: {"model": r, "model_ema": e, "scaler": {"scale": 65536.0}, "epoch": 1}, "`model_ema`", "averaged"),
    Layout("MAE, BEiT, SAM, DETR", "`model`", lambda r, e: {"model": r, "args": _ARGS}, "`model`"),
    Layout("Lightning", "`state_dict` of `model.`, `hyper_parameters`, `callbacks`, `loops`", lambda r, e: {"epoch": 1, "pytorch-lightning_version": "2.4", "state_dict": _under("model.", r), "loops": {}, "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}}, "optimizer_states": [_optimizer()], "hyper_parameters": _dict("lightning_fabric.utilities.data.AttributeDict", lr=0.1)}, "`state_dict`, below `model.`"),
    Layout("Lightning with losses and metrics", "`state_dict` of `net.`, `criterion.`, `train_acc.`", lambda r, e: {"state_dict": _under("net.", r) | {"criterion.weight": torch.ones(3), "train_acc.tp": torch.ones(3)}}, "`state_dict`, below `net.`"),
    Layout("Lightning, weight averaging", "`state_dict`, `current_model_state`", lambda r, e: {"state_dict": _under("model.", e), "current_model_state": _under("model.", r), "averaging_state": {"n_averaged": torch.tensor(4)}}, "`state_dict`", "averaged"),
    Layout("mmcv (MMDetection 2)", "`meta`, `state_dict`, `optimizer`", lambda r, e: {"meta": {"mmcv_version": "1.7", "CLASSES": ("a", "b")}, "state_dict": r, "optimizer": _optimizer()}, "`state_dict`"),
    Layout("mmcv, EMA hook", "`state_dict` with `ema_conv_weight`", lambda r, e: {"meta": {}, "state_dict": e | {f"ema_{n.replace('.', '_')}": x for n, x in r.items()}}, "`state_dict` (swapped when saved)", "averaged"),
    Layout("mmengine", "`meta`, `state_dict`, `message_hub`", lambda r, e: {"meta": {"seed": 1}, "state_dict": r, "message_hub": {"log_scalars": {"loss": _object("mmengine.logging.history_buffer.HistoryBuffer", _max_length=9)}}, "param_schedulers": [{"last_step": 1}]}, "`state_dict`"),
    Layout("mmengine, EMA hook", "`state_dict`, `ema_state_dict` of `module.`, `steps`", lambda r, e: {"meta": {}, "state_dict": e, "ema_state_dict": _under("module.", r) | {"steps": torch.tensor(9)}, "message_hub": {}}, "`state_dict` (swapped when saved)", "averaged"),
    Layout("OpenMMLab, a backbone of a detector", "`backbone.`, `neck.`, `bbox_head.`", lambda r, e: {"meta": {}, "state_dict": _under("backbone.", r) | {"neck.conv.weight": torch.ones(2, 2), "bbox_head.fc.bias": torch.ones(2)}}, "`state_dict`, below `backbone.`"),
    Layout("detectron2", "`model`, `optimizer`, `scheduler`, `iteration`", lambda r, e: {"model": r, "optimizer": _optimizer(), "scheduler": {"last_epoch": 1}, "iteration": 89999}, "`model`"),
    Layout("detectron2, model zoo", "`model` of NumPy arrays, `__author__` (a `.pkl`)", lambda r, e: {"model": _arrays(r), "__author__": "Caffe2", "matching_heuristics": True}, "`model`", write=_pickled),
    Layout("Unbiased Teacher", "`modelTeacher.`, `modelStudent.`", lambda r, e: {"model": _under("modelStudent.", r) | _under("modelTeacher.", e)}, "below `modelTeacher.`", "averaged"),
    Layout("yacs CfgNode beside", "`model`, `cfg`", lambda r, e: {"model": r, "cfg": _dict("yacs.config.CfgNode", LR=0.1)}, "`model`"),
    Layout("easydict beside", "`net`, `opt`", lambda r, e: {"net": r, "opt": _dict("easydict.EasyDict", lr=0.1)}, "`net`"),
    Layout("addict and mmengine ConfigDict beside", "`state_dict`, `config`", lambda r, e: {"config": _dict("mmengine.config.config.ConfigDict", model=_dict("addict.addict.Dict", depth=50)), "state_dict": r}, "`state_dict`"),
    Layout("omegaconf beside", "`state_dict`, `cfg`", lambda r, e: {"cfg": _object("omegaconf.dictconfig.DictConfig", _content={"lr": 0.1, "steps": _object("omegaconf.listconfig.ListConfig", _content=[1, 2])}), "state_dict": r}, "`state_dict`"),
    Layout("histories beside", "`model`, `losses` (deque, defaultdict, set)", lambda r, e: {"losses": collections.deque([1.0, 0.5], maxlen=9), "seen": {1, 2}, "log": collections.defaultdict(list, a=[1]), "counts": collections.Counter("aab"), "model": r}, "`model`"),
    Layout("a state dict of a class of its own", "a dict subclass of names", lambda r, e: _dict("addict.addict.Dict", **r), "all"),
    Layout("fairseq", "`args`, `cfg`, `model`, `extra_state`, `last_optimizer_state`", lambda r, e: {"args": _ARGS, "cfg": None, "model": r, "optimizer_history": [{"num_updates": 1}], "extra_state": {"epoch": 1}, "last_optimizer_state": _optimizer()}, "`model`"),
    Layout("fairseq, EMA", "`model`, `extra_state.ema_fp32_params`", lambda r, e: {"model": r, "extra_state": {"ema_fp32_params": e}}, "`model` (averages by `--key`)"),
    Layout("transformers Trainer, `pytorch_model.bin`", "names", lambda r, e: OrderedDict(r), "all"),
    Layout("transformers, the base of a model with a head", "`bert.`, `classifier.`", lambda r, e: _under("bert.", r) | {"classifier.weight": torch.ones(2, 3)}, "below `bert.`"),
    Layout("DeepSpeed, `mp_rank_00_model_states.pt`", "`module`, `ds_config`, `optimizer`", lambda r, e: {"module": r, "buffer_names": ["bn.running_mean"], "optimizer": None, "ds_config": {"fp16": {"enabled": True}}, "global_steps": 3}, "`module`"),
    Layout("DeepSpeed and accelerate, consolidated", "names, `module.`", lambda r, e: _under("module.", r), "below `module.`"),
    Layout("Composer", "`state.model`, `state.optimizers`, `rng`", lambda r, e: {"state": {"model": _under("module.", r), "optimizers": {"Adam": _optimizer()}}, "rng": [{"torch": torch.get_rng_state()}]}, "`state.model`"),
    Layout("Catalyst, Whisper", "`model_state_dict`, `optimizer_state_dict`", lambda r, e: {"model_state_dict": r, "optimizer_state_dict": _optimizer(), "dims": {"n_mels": 80}}, "`model_state_dict`"),
    Layout("Ignite, fastai `learn.save`", "`model`, `opt`", lambda r, e: {"model": r, "opt": _optimizer()}, "`model`"),
    Layout("fastai `learn.export`", "a Learner with `model`", lambda r, e: _object("fastai.learner.Learner", model=_module("ultralytics.nn.tasks.DetectionModel", r), lr=0.1), "`model`"),
    Layout("SlowFast, VISSL", "`classy_state_dict.base_model.model.trunk`", lambda r, e: {"iteration": 1, "classy_state_dict": {"base_model": {"model": {"trunk": _under("_feature_blocks.", r), "heads": {"0.clf.weight": torch.ones(2, 2)}}}}}, "`classy_state_dict.base_model.model.trunk`, below `_feature_blocks.`"),
    Layout("Demucs", "`klass`, `args`, `kwargs`, `state`", lambda r, e: {"klass": Net, "args": [], "kwargs": {"channels": 4}, "state": r, "training_args": _dict("addict.addict.Dict", lr=1)}, "`state`"),
    Layout("Ultralytics", "`model`, `ema` (whole models), `train_args`", lambda r, e: {"epoch": 3, "model": _module("ultralytics.nn.tasks.DetectionModel", r), "ema": _module("ultralytics.nn.tasks.DetectionModel", e), "updates": 9, "optimizer": None, "train_args": {"imgsz": 8}}, "`ema`", "averaged"),
    Layout("Ultralytics, after training", "`model` (a whole model), `ema` None", lambda r, e: {"epoch": -1, "model": _module("ultralytics.nn.tasks.DetectionModel", r), "ema": None, "train_args": {"imgsz": 8}}, "`model`"),
    Layout("YOLOX", "`model`, `start_epoch`, `optimizer`, `best_ap`", lambda r, e: {"start_epoch": 1, "model": r, "optimizer": _optimizer(), "best_ap": 0.4}, "`model`"),
    Layout("RT-DETR, DAMO-YOLO", "`model`, `ema.module`, `ema.updates`", lambda r, e: {"model": r, "ema": {"module": e, "updates": 3, "warmups": 2000}, "last_epoch": 3}, "`ema.module`", "averaged"),
    Layout("BasicSR (ESRGAN, SwinIR, Restormer)", "`params`, `params_ema`", lambda r, e: {"params": r, "params_ema": e}, "`params_ema`", "averaged"),
    Layout("BasicSR without EMA", "`params`", lambda r, e: {"params": r}, "`params`"),
    Layout("Latent diffusion", "`state_dict` of `model.`, `model_ema.` without dots", lambda r, e: {"state_dict": _ldm(r, e), "global_step": 1}, "`state_dict.model_ema`", "averaged"),
    Layout("GAN", "`G`, `D`", lambda r, e: {"G": r, "D": _OTHER}, "`G`, which fits"),
    Layout("GAN, the other part", "`D`, `G`", lambda r, e: {"D": r, "G": _OTHER}, "`D`, which fits"),
    Layout("StyleGAN 2 (rosinality)", "`g`, `d`, `g_ema`, `g_optim`, `d_optim`, `args`", lambda r, e: {"g": r, "d": _OTHER, "g_ema": e, "g_optim": _optimizer(), "d_optim": _optimizer(), "args": _ARGS}, "`g_ema`", "averaged"),
    Layout("HiFi-GAN, vocoders", "`generator`", lambda r, e: {"generator": r}, "`generator`"),
    Layout("CycleGAN", "`netG_A`, `netG_B`", lambda r, e: {"netG_A": r, "netG_B": e}, "neither: `--key` says which", "--key netG_A"),
    Layout("CycleGAN with `--key netG_B`", "`netG_A`, `netG_B`", lambda r, e: {"netG_A": e, "netG_B": r}, "`netG_B`", options=(("key", "netG_B"),)),
    Layout("a list of model and optimizer", "`0`, `1`", lambda r, e: [r, _optimizer()], "`0`"),
    Layout("a tuple of models with `--key 1`", "`0`, `1`", lambda r, e: (e, r), "`1`", options=(("key", "1"),)),
    Layout("mean teacher", "`student`, `teacher`", lambda r, e: {"student": r, "teacher": e, "epoch": 1}, "`teacher`", "averaged"),
    Layout("mean teacher with `--key student`", "`student`, `teacher`", lambda r, e: {"student": r, "teacher": e}, "`student`", options=(("key", "student"),)),
    Layout("DINO", "`student` of `module.backbone.`, `teacher` of `backbone.`, `head.`", lambda r, e: {"student": _under("module.backbone.", r) | {"module.head.mlp.0.weight": torch.ones(2, 2)}, "teacher": _under("backbone.", e) | {"head.mlp.0.weight": torch.ones(2, 2)}, "args": _ARGS, "dino_loss": {"center": torch.ones(1, 3)}}, "`teacher`, below `backbone.`", "averaged"),
    Layout("MoCo", "`module.encoder_q.`, `module.encoder_k.`, `module.queue`", lambda r, e: {"state_dict": _under("module.encoder_q.", r) | _under("module.encoder_k.", e) | {"module.queue": torch.ones(2, 5)}}, "below `module.encoder_q.`"),
    Layout("BYOL", "`online_encoder.`, `target_encoder.`", lambda r, e: _under("target_encoder.", e) | _under("online_encoder.", r), "below `online_encoder.`"),
    Layout("SimCLR, SwAV", "`backbone.`, `projection_head.`", lambda r, e: _under("backbone.", r) | {"projection_head.0.weight": torch.ones(2, 2)}, "below `backbone.`"),
    Layout("CLIP, a tower", "`visual.`, `transformer.`", lambda r, e: _under("visual.", r) | {"transformer.resblocks.0.weight": torch.ones(2, 2), "logit_scale": torch.tensor(1.0)}, "below `visual.`"),
    Layout("two alike with `--prefix left`", "`left.`, `right.`", lambda r, e: _under("left.", r) | _under("right.", e), "below `left.`", options=(("prefix", "left"),)),
    Layout("two alike", "`left.`, `right.`", lambda r, e: _under("left.", r) | _under("right.", e), "neither: `--prefix` says which", "--prefix left."),
    Layout("parts on their own", "`conv`, `bn`, `fc`, each a state dict", lambda r, e: _nested(r), "all"),
    Layout("NumPy arrays", "names", lambda r, e: {"params": _arrays(r)}, "`params`"),
    Layout("thop", "`total_ops`, `total_params` beside each", lambda r, e: r | {"total_ops": torch.zeros(1), "conv.total_ops": torch.zeros(1), "conv.total_params": torch.zeros(1)}, "all but the counts"),
    Layout("torch.nn.utils.prune", "`conv.weight_orig`, `conv.weight_mask`", lambda r, e: _pruned(r), "their product", "masked"),
    Layout("LoRA (peft)", "`base_model.model.`, `lora_A`, `lora_B`", lambda r, e: _under("base_model.model.", {n: x for n, x in r.items() if "fc" not in n}) | {"base_model.model.fc.base_layer.weight": r["fc.weight"], "base_model.model.fc.lora_A.default.weight": torch.ones(2, 144)}, "refused: merge it first", "not in the model (fc.base_layer.weight"),
    Layout("names that the model lacks, with `--no-strict`", "names, `aux.weight`", lambda r, e: r | {"aux.weight": torch.ones(2)}, "all it has", options=(("strict", False),)),
)  # fmt: skip


def _dict(whole: str, **items: Any) -> Any:
    return _class(whole)(items)
