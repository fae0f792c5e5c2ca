"""transformers: one small model of each family that people bring, with random weights and every input a user passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = tuple[Any, ...]
Built = tuple[nn.Module, Inputs]

_BATCH, _TOKENS, _WORDS = 2, 12, 100
_SMALL: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


class Positional(nn.Module):
    """``model`` with positional tensors in the place of the keywords ``names``; of what comes out, the tensors, or
    those called ``outputs``."""

    def __init__(self, model: nn.Module, *names: str, outputs: tuple[str, ...] = (), **rest: Any) -> None:
        super().__init__()
        self.model, self.names, self.outputs, self.rest = model, names, outputs, rest

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self.model(**dict(zip(self.names, inputs, strict=True)), **self.rest, return_dict=True)
        return tuple(found[name] for name in self.outputs or found if isinstance(found[name], Tensor))


def _words(batch: int = _BATCH, tokens: int = _TOKENS) -> Tensor:
    return torch.randint(3, _WORDS, (batch, tokens))


def _mask(batch: int = _BATCH, tokens: int = _TOKENS) -> Tensor:
    """The last sentence is shorter than the others."""
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[-1, -tokens // 4 :] = 0
    return mask


def _image(side: int) -> Tensor:
    return torch.randn(_BATCH, 3, side, side)


def _text(kind: str, config: Any, *, segments: bool = False) -> Built:
    """A model of words that has an encoder only."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]
    inputs = [_words(), _mask(), *([torch.randint(0, 2, (_BATCH, _TOKENS))] if segments else [])]
    return Positional(getattr(transformers, kind)(config), *names), tuple(inputs)


def _decoder(kind: str, config: Any) -> Built:
    model = getattr(transformers, kind)(config)
    return Positional(model, "input_ids", "attention_mask", use_cache=False), (_words(), _mask())


def _vision(kind: str, config: Any, side: int) -> Built:
    return Positional(getattr(transformers, kind)(config), "pixel_values"), (_image(side),)


# -- words ----------------------------------------------------------------------------------------------------------


def bert() -> Built:
    config = transformers.BertConfig(vocab_size=_WORDS, max_position_embeddings=32, num_labels=3, **_SMALL)
    return _text("BertForSequenceClassification", config, segments=True)


def bert_masked_words() -> Built:
    config = transformers.BertConfig(vocab_size=_WORDS, max_position_embeddings=32, **_SMALL)
    return _text("BertForMaskedLM", config, segments=True)


def distilbert() -> Built:
    config = transformers.DistilBertConfig(
        vocab_size=_WORDS, max_position_embeddings=32, dim=48, n_layers=2, n_heads=4, hidden_dim=96, num_labels=3
    )
    return _text("DistilBertForSequenceClassification", config)


def roberta() -> Built:
    config = transformers.RobertaConfig(
        vocab_size=_WORDS, max_position_embeddings=32, type_vocab_size=2, num_labels=3, **_SMALL
    )
    return _text("RobertaForSequenceClassification", config, segments=True)


def albert() -> Built:
    """Its layers share one set of weights."""
    config = transformers.AlbertConfig(
        vocab_size=_WORDS, max_position_embeddings=32, embedding_size=16, num_labels=3, **_SMALL
    )
    return _text("AlbertForSequenceClassification", config, segments=True)


def gpt2() -> Built:
    config = transformers.GPT2Config(
        vocab_size=_WORDS, n_positions=32, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    return _decoder("GPT2LMHeadModel", config)


def llama() -> Built:
    config = transformers.LlamaConfig(vocab_size=_WORDS, max_position_embeddings=32, num_key_value_heads=2, **_SMALL)
    return _decoder("LlamaForCausalLM", config)


def qwen2() -> Built:
    config = transformers.Qwen2Config(vocab_size=_WORDS, max_position_embeddings=32, num_key_value_heads=2, **_SMALL)
    return _decoder("Qwen2ForCausalLM", config)


def qwen3() -> Built:
    """Queries and keys are normed head by head."""
    config = transformers.Qwen3Config(
        vocab_size=_WORDS, max_position_embeddings=32, num_key_value_heads=2, head_dim=12, **_SMALL
    )
    return _decoder("Qwen3ForCausalLM", config)


def _t5() -> Any:
    return transformers.T5Config(
        vocab_size=_WORDS, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
    )


def t5_encoder() -> Built:
    return _text("T5EncoderModel", _t5())


def t5() -> Built:
    model = transformers.T5ForConditionalGeneration(_t5())
    names = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
    inputs = (_words(), _mask(), _words(tokens=7), _mask(tokens=7))
    return Positional(model, *names, outputs=("logits",), use_cache=False), inputs


# -- images ---------------------------------------------------------------------------------------------------------


def vit() -> Built:
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=3, **_SMALL)
    return _vision("ViTForImageClassification", config, 32)


def swin() -> Built:
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=3
    )
    return _vision("SwinForImageClassification", config, 32)


def convnext() -> Built:
    config = transformers.ConvNextConfig(hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], num_labels=3)
    return _vision("ConvNextForImageClassification", config, 64)


def segformer() -> Built:
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], decoder_hidden_size=32, num_labels=3
    )
    return _vision("SegformerForSemanticSegmentation", config, 64)


def detr() -> Built:
    backbone = transformers.ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        backbone=None,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=10,
        num_labels=3,
    )
    mask = torch.ones(_BATCH, 64, 64, dtype=torch.long)
    mask[-1, :, 48:] = 0
    model = transformers.DetrForObjectDetection(config)
    return Positional(model, "pixel_values", "pixel_mask", outputs=("logits", "pred_boxes")), (_image(64), mask)


# -- words and images -----------------------------------------------------------------------------------------------


def _clip() -> Any:
    words = {"vocab_size": _WORDS, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    text = {"projection_dim": 24, **words, **_SMALL}
    image = {"image_size": 32, "patch_size": 8, "projection_dim": 24, **_SMALL}
    return transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=24)


def clip_text() -> Built:
    return _text("CLIPTextModelWithProjection", _clip().text_config)


def clip_vision() -> Built:
    return _vision("CLIPVisionModelWithProjection", _clip().vision_config, 32)


def clip() -> Built:
    names = ("input_ids", "attention_mask", "pixel_values")
    return Positional(transformers.CLIPModel(_clip()), *names), (_words(), _mask(), _image(32))


# -- sound ----------------------------------------------------------------------------------------------------------


def whisper_encoder() -> Built:
    config = transformers.WhisperConfig(
        vocab_size=_WORDS,
        num_mel_bins=16,
        d_model=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_source_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Positional(transformers.WhisperModel(config).encoder, "input_features"), (torch.randn(_BATCH, 16, 40),)


def wav2vec2() -> Built:
    config = transformers.Wav2Vec2Config(
        vocab_size=_WORDS,
        conv_dim=(32, 32, 32),
        conv_stride=(5, 2, 2),
        conv_kernel=(10, 3, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **_SMALL,
    )
    return Positional(transformers.Wav2Vec2ForCTC(config), "input_values", "attention_mask"), (
        torch.randn(_BATCH, 800),
        _mask(tokens=800),
    )


MODELS: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        *(bert, bert_masked_words, distilbert, roberta, albert, gpt2, llama, qwen2, qwen3, t5_encoder, t5),
        *(vit, swin, convnext, segformer, detr, clip_text, clip_vision, clip, whisper_encoder, wav2vec2),
    )
}
