"""A small model of each kind of folder, with random weights large enough that every layer shows in the logits."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

_ALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 256,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _ALL | {"num_key_value_heads": 2}
_WIDE_HEADS = _GROUPED | {"head_dim": 8}
_PICTURES = {k: v for k, v in _ALL.items() if not k.endswith("_id") and "position" not in k and k != "vocab_size"}
_PICTURES |= {"image_size": 16, "patch_size": 8, "num_labels": 5}
_SOUNDS = _ALL | {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_feat_extract_layers": 2}
_SOUNDS |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 12}
_READS = {k: v for k, v in _ALL.items() if k != "initializer_range"} | {"projection_dim": 16}
_SEES = _PICTURES | {"projection_dim": 16}
_TOWERS = {"text_config": _READS, "vision_config": _SEES, "projection_dim": 16}
_HEARS = {
    "vocab_size": 256,
    "num_mel_bins": 8,
    "d_model": 32,
    **{f"{part}_{key}": n for part in ("encoder", "decoder") for key, n in (("layers", 2), ("attention_heads", 4))},
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_source_positions": 10,
    "max_target_positions": 20,
    "init_std": 0.3,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
_STAGES = {"image_size": 32, "patch_size": 4, "num_labels": 5, "depths": [1, 1], "initializer_range": 0.3}
_STAGES |= {"num_stages": 2, "hidden_sizes": [8, 16]}

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _GROUPED),
    "mistral": ("MistralForCausalLM", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", _WIDE_HEADS),
    "smollm3": ("SmolLM3ForCausalLM", _GROUPED),
    "granite": ("GraniteForCausalLM", _GROUPED),
    "gemma": ("GemmaForCausalLM", _WIDE_HEADS),
    "gemma2": ("Gemma2ForCausalLM", _WIDE_HEADS),
    "gemma3_text": ("Gemma3ForCausalLM", _WIDE_HEADS),
    "phi": ("PhiForCausalLM", _GROUPED),
    "phi3": ("Phi3ForCausalLM", _GROUPED),
    "gpt2": ("GPT2LMHeadModel", _ALL),
    "gpt_neox": ("GPTNeoXForCausalLM", _ALL),
    "opt": ("OPTForCausalLM", _ALL | {"ffn_dim": 40, "word_embed_proj_dim": 32, "init_std": 0.3}),
    "bert": ("BertForMaskedLM", _ALL),
    "roberta": ("RobertaForMaskedLM", _ALL),
    "xlm-roberta": ("XLMRobertaForMaskedLM", _ALL),
    "camembert": ("CamembertForMaskedLM", _ALL),
    "electra": ("ElectraForMaskedLM", _ALL | {"embedding_size": 32}),
    "distilbert": ("DistilBertForMaskedLM", _ALL | {"hidden_dim": 40}),
    "modernbert": ("ModernBertForMaskedLM", _ALL),
    "deberta": ("DebertaForMaskedLM", _ALL),
    "deberta-v2": ("DebertaV2ForMaskedLM", _ALL),
    "vit": ("ViTForImageClassification", _PICTURES),
    "deit": ("DeiTForImageClassification", _PICTURES),
    "wav2vec2": ("Wav2Vec2ForCTC", _SOUNDS),
    "hubert": ("HubertForCTC", _SOUNDS),
    "clip": ("CLIPModel", _TOWERS),
    "clip_text_model": ("CLIPTextModelWithProjection", _READS),
    "clip_vision_model": ("CLIPVisionModelWithProjection", _SEES),
    "whisper": ("WhisperForConditionalGeneration", _HEARS),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": _WIDE_HEADS, "vision_config": _PICTURES, "mm_tokens_per_image": 4},
    ),
    "swin": ("SwinForImageClassification", _STAGES | {"embed_dim": 8, "num_heads": [1, 2], "window_size": 2}),
    "dinov2": ("Dinov2ForImageClassification", _PICTURES),
    "convnext": ("ConvNextForImageClassification", _STAGES),
    "convnextv2": ("ConvNextV2ForImageClassification", _STAGES),
}
"""By ``model_type``: the class, and what its configuration is given."""


@functools.cache
def tiny(kind: str, layers: int = 2) -> Any:
    """The model, in eval mode."""
    name, options = TINY[kind]
    options = options if "depths" in options else _with_layers(options, layers)
    kind_of_model = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind_of_model(kind_of_model.config_class(**options)).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # biases begin as zeros, and norms as ones
            tensor.add_(0.05 * torch.randn(tensor.shape))
    return model


def _with_layers(options: dict[str, Any], layers: int) -> dict[str, Any]:
    parts = {key: _with_layers(part, layers) for key, part in options.items() if isinstance(part, dict)}
    named = [key for key in options if key in ("encoder_layers", "decoder_layers")] or ["num_hidden_layers"]
    return options | (parts or dict.fromkeys(named, layers))


def tiny_folder(
    kind: str, place: Path, *, layers: int = 2, dtype: torch.dtype = torch.float32, shard: str = "1GB"
) -> Path:
    """The model saved to ``place / kind``, in files of at most ``shard``."""
    folder = place / kind
    model = copy.deepcopy(tiny(kind, layers))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def sample_of(model: Any, seed: int = 5) -> dict[str, torch.Tensor]:
    """Two samples, by the name of the input."""
    draw = torch.Generator().manual_seed(seed)
    pictures = {"pixel_values": torch.randn(2, 3, 16, 16, generator=draw)}
    if model.main_input_name == "pixel_values":
        return pictures
    if model.main_input_name == "input_values":
        return {"input_values": torch.randn(2, 320, generator=draw)}
    words = torch.randint(3, 256, (2, 11), generator=draw)
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(2, 8, 20, generator=draw), "decoder_input_ids": words}
    return {"input_ids": words} | (pictures if hasattr(model.config, "vision_config") else {})
