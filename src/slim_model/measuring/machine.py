"""The machine that numbers come from: processor, instruction set, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from slim_model.errors import InputError
from slim_model.measuring.runtimes import ONNXRUNTIME, version_of


def environment() -> dict[str, Any]:
    """What a number depends on, and nothing that names the machine or its user."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "instruction_set": instruction_set(),
        "int8_instructions": int8_instructions(),
        "logical_cores": os.cpu_count(),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": version_of("onnx"),
        "onnxruntime": version_of(*ONNXRUNTIME),
        "openvino": version_of("openvino"),
        "devices": devices,
    }


def check_device(device: str) -> None:
    """Raise InputError where PyTorch cannot use ``device`` here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no CUDA device here. Leave the option out to use the CPU.")


def has_bf16(device: torch.device) -> bool:
    """Whether training is faster there in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def instruction_set() -> str:
    """The vector instructions PyTorch's CPU kernels use: AVX512, AVX2, NEON, SVE256, or DEFAULT."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "DEFAULT" and platform.machine().lower() in ("arm64", "aarch64"):
        return "NEON"
    return capability


_SUM_PRODUCTS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot product",
}
"""Instructions that add products of int8 in 32 bits, as Linux names them, the widest first."""


def int8_instructions() -> list[str]:
    """What this processor adds products of int8 in 32 bits with. Where it is nothing, int8 is hardly faster than fp32,
    and on x86 two products may saturate in 16 bits."""
    known = set(cpu_flags())
    return [name for flag, name in _SUM_PRODUCTS.items() if flag in known]


def vector_width_channels(device: str) -> int:
    """The block of channels the kernels of ``device`` ("cpu", "cuda", "cuda:1") work on at once.

    On a CPU the float32 lanes of a vector; 8 on CUDA, what float16 tensor cores want, and where unknown.
    """
    if device.partition(":")[0] != "cpu":
        return 8
    return {"AVX512": 16, "AVX2": 8, "NEON": 4}.get(instruction_set(), 8)


def commit() -> str | None:
    """The commit of slim-model's own source, where it runs from a checkout; "+" follows where files differ from it.

    A checkout of somebody else's that slim-model is merely installed in does not count.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError):
            asked = ["git", "-C", str(here.parent), *arguments]
            done = subprocess.run(asked, capture_output=True, text=True, check=False)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    return f"{git('rev-parse', '--short=12', 'HEAD')}{'+' if git('status', '--porcelain', '--', '.') else ''}"


def cpu_flags() -> list[str]:
    """The instructions the processor has, as Linux names them; elsewhere only the widest of them."""
    if said := _cpuinfo("flags", "Features"):
        return sorted(said[0].split())
    if platform.system() == "Darwin" and instruction_set() == "NEON":
        features = {"asimddp": "FEAT_DotProd", "i8mm": "FEAT_I8MM"}
        return ["NEON", *(flag for flag, name in features.items() if _sysctl(f"hw.optional.arm.{name}") == "1")]
    return [instruction_set()]


def _cpu_name() -> str:
    if name := _cpuinfo("model name") or list(filter(None, [_sysctl("machdep.cpu.brand_string")])):
        return name[0]
    # ARM's kernel tells numbers: implementer 0x41, part 0xd0c is a Neoverse N1
    numbers = zip(("implementer", "part"), (_cpuinfo("CPU implementer"), _cpuinfo("CPU part")), strict=True)
    parts = [f"{what} {said[0]}" for what, said in numbers if said]
    return ", ".join([platform.processor() or platform.machine(), *parts])


def _cpuinfo(*keys: str) -> list[str]:
    """What Linux says under one of ``keys``, core after core; nothing elsewhere."""
    with contextlib.suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        return [value.strip() for key, _, value in lines if key.strip() in keys]
    return []


def _sysctl(name: str) -> str:
    """What macOS says of ``name``; nothing elsewhere."""
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError):
            return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()
    return ""
