"""What the configuration of each kind of transformers model can say about widths: one row a ``model_type``.

A row speaks of tensors by their names in the file, behind the number of their layer. That it names all that holds the
channels is shown by the labels: the tests trace a small model of each row and compare (``tests/folders``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["mlp", "heads"]


@dataclass(frozen=True, slots=True)
class Cut:
    """What every layer has equally many of: ``mlp`` channels, or ``heads``: key-value groups with their queries.

    ``layers``: what stands ahead of a layer's number. ``makes``: the linear layers whose outputs they are, each with
    the parts that lie side by side along these: c(hannels), q(ueries), k(eys), v(alues). ``reads``: the linear layer
    that takes them in. ``keys``: of the configuration, which hold their number; of heads that of all queries, then
    that of the groups. ``module``: ``reads`` as the class calls it, where that is another name. ``part``: of the model,
    where it has several with widths of their own; ``within``: the key under which the configuration has those;
    ``depth``: the key of the part's number of layers.
    """

    kind: Kind
    layers: str
    makes: tuple[tuple[str, str], ...]
    reads: str
    keys: tuple[str, ...]
    module: str = ""
    part: str = ""
    within: str = ""
    depth: str = ""

    @property
    def name(self) -> str:
        """The part and the kind."""
        return f"{self.part} {self.kind}".strip()


@dataclass(frozen=True, slots=True)
class Stream:
    """Who touches the residual stream, whose channels are ``hidden_size``. ``norms``: of each layer, with the linear
    layers that read them; ``writes``: the linear layers whose outputs are added; ``embedding`` and ``last``, the norm
    behind all layers, stand outside of these. What reads that one is a head, whatever its name."""

    norms: tuple[tuple[str, tuple[str, ...]], ...]
    writes: tuple[str, ...]
    embedding: str = "embed_tokens"
    last: str = "norm"


@dataclass(frozen=True, slots=True)
class Family:
    """``head_width``: what the configuration's ``head_dim`` is where it is left out; None: the hidden size by the
    number of heads. ``whole_multiple``: the configuration refuses heads whose number does not divide the hidden size.
    ``transposed``: weights lie as (input, output). ``unsaid``: why there is no cut of heads. ``depth``: the key of the
    number of layers; ``per_layer``: keys of lists with one entry for each layer; ``first_stays``: the first layer is
    unlike the others. No ``cuts``: the configuration can say no width; ``unsaid`` says why, ``instead`` what to do.
    ``stream``: who has the hidden channels; None: ``hidden_size`` stays, as ``fixed`` says, or ``unsaid``."""

    cuts: tuple[Cut, ...]
    head_width: int | None = None
    whole_multiple: bool = False
    transposed: bool = False
    unsaid: str = ""
    depth: str = "num_hidden_layers"
    per_layer: tuple[str, ...] = ("layer_types",)
    first_stays: bool = False
    stream: Stream | None = None
    fixed: str = ""
    instead: str = "Give OUT.onnx instead of a folder, where any width can go"


def _mlp(layers: str, key: str, makes: str, reads: str, module: str = "") -> Cut:
    """``makes``: names, each with as many channels as it has outputs, or ``name*2``: two blocks of them."""
    named = [name.partition("*") for name in makes.split()]
    return Cut("mlp", layers, tuple((name, "c" * int(times or 1)) for name, _, times in named), reads, (key,), module)


def _tower(part: str) -> Cut:
    """The MLP of one of CLIP's two encoders, which have a configuration each."""
    cut = _mlp(f"{part}_model.encoder.layers", "intermediate_size", "mlp.fc1", "mlp.fc2")
    return replace(cut, part=part, within=f"{part}_config", depth="num_hidden_layers")


def _half(part: str) -> Cut:
    """The MLP of Whisper's encoder or decoder."""
    return replace(_mlp(f"{part}.layers", f"{part}_ffn_dim", "fc1", "fc2"), part=part, depth=f"{part}_layers")


def _heads(layers: str, makes: str, reads: str) -> Cut:
    """``makes``: ``name=qkv``, each with its parts."""
    named = (name.partition("=") for name in makes.split())
    keys = ("num_attention_heads", "num_key_value_heads")
    return Cut("heads", layers, tuple((name, parts) for name, _, parts in named), reads, keys)


_WIDTH_OF_HEADS = "the configuration has no width of heads: it is the hidden size by their number"
_GATED = _mlp("layers", "intermediate_size", "mlp.gate_proj mlp.up_proj", "mlp.down_proj")
_QKV = "self_attn.q_proj=q self_attn.k_proj=k self_attn.v_proj=v"
_GROUPS = _heads("layers", _QKV, "self_attn.o_proj")
_QUERIES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_STREAM = Stream(
    (("input_layernorm", _QUERIES), ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"))),
    ("self_attn.o_proj", "mlp.down_proj"),
)
_ROOT = "its embedding is multiplied by the square root of hidden_size"
_BERT = Family(
    (_mlp("encoder.layer", "intermediate_size", "intermediate.dense", "output.dense"),), unsaid=_WIDTH_OF_HEADS
)
_VIT = Family(
    (_mlp("encoder.layer", "intermediate_size", "intermediate.dense", "output.dense", "mlp.fc2"),),
    unsaid="before transformers 5 the configuration had no width of heads",
)
_WAV2VEC = Family(
    (_mlp("encoder.layers", "intermediate_size", "feed_forward.intermediate_dense", "feed_forward.output_dense"),),
    unsaid=_WIDTH_OF_HEADS,
)
_TOWERS = Family((_tower("text"), _tower("vision")), unsaid=_WIDTH_OF_HEADS)
_TOWER = Family((_mlp("encoder.layers", "intermediate_size", "mlp.fc1", "mlp.fc2"),), unsaid=_WIDTH_OF_HEADS)
_BY_RATIO = Family(
    (), unsaid="the configuration has no number of MLP channels: they are mlp_ratio times the hidden size"
)
_BY_STAGE = Family((), unsaid="the configuration has no number of MLP channels: they are 4 times those of their stage")

FAMILIES: dict[str, Family] = {
    "llama": Family((_GATED, _GROUPS), whole_multiple=True, stream=_STREAM),
    "mistral": Family((_GATED, _GROUPS), stream=_STREAM),
    "qwen2": Family((_GATED, _GROUPS), stream=_STREAM),
    "qwen3": Family((_GATED, _GROUPS), head_width=128, stream=_STREAM),
    "smollm3": Family((_GATED, _GROUPS), per_layer=("layer_types", "no_rope_layers"), stream=_STREAM),
    "granite": Family((_GATED, _GROUPS), stream=_STREAM),
    "gemma": Family((_GATED, _GROUPS), head_width=256, fixed=_ROOT),
    "gemma2": Family((_GATED, _GROUPS), head_width=256, whole_multiple=True, fixed=_ROOT),
    "gemma3_text": Family((_GATED, _GROUPS), head_width=256, whole_multiple=True, fixed=_ROOT),
    "phi": Family(
        (
            _mlp("layers", "intermediate_size", "mlp.fc1", "mlp.fc2"),
            _heads("layers", _QKV, "self_attn.dense"),
        ),
        stream=Stream(
            (("input_layernorm", (*_QUERIES, "mlp.fc1")),), ("self_attn.dense", "mlp.fc2"), last="final_layernorm"
        ),
    ),
    "phi3": Family(
        (
            _mlp("layers", "intermediate_size", "mlp.gate_up_proj*2", "mlp.down_proj"),
            _heads("layers", "self_attn.qkv_proj=qkv", "self_attn.o_proj"),
        ),
        stream=Stream(
            (("input_layernorm", ("self_attn.qkv_proj",)), ("post_attention_layernorm", ("mlp.gate_up_proj",))),
            ("self_attn.o_proj", "mlp.down_proj"),
        ),
    ),
    "gpt2": Family(
        (_mlp("h", "n_inner", "mlp.c_fc", "mlp.c_proj"),),
        transposed=True,
        unsaid=_WIDTH_OF_HEADS,
        depth="n_layer",
    ),
    "gpt_neox": Family(
        (_mlp("layers", "intermediate_size", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),),
        unsaid=_WIDTH_OF_HEADS,
    ),
    "opt": Family(
        (_mlp("layers", "ffn_dim", "fc1", "fc2"),),
        unsaid=_WIDTH_OF_HEADS,
    ),
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "deberta": _BERT,
    "deberta-v2": _BERT,
    "distilbert": Family(
        (_mlp("transformer.layer", "hidden_dim", "ffn.lin1", "ffn.lin2"),), unsaid=_WIDTH_OF_HEADS, depth="n_layers"
    ),
    "modernbert": Family(
        (_mlp("layers", "intermediate_size", "mlp.Wi*2", "mlp.Wo"),), unsaid=_WIDTH_OF_HEADS, first_stays=True
    ),
    "vit": _VIT,
    "deit": _VIT,
    "wav2vec2": _WAV2VEC,
    "hubert": _WAV2VEC,
    "clip": _TOWERS,
    "clip_text_model": _TOWER,
    "clip_vision_model": _TOWER,
    "whisper": Family((_half("encoder"), _half("decoder")), unsaid=_WIDTH_OF_HEADS),
    "gemma3": Family(
        (),
        unsaid="its configuration leaves out widths of words and pictures",
        instead="Save its language model alone: Gemma3ForConditionalGeneration.from_pretrained(folder).model"
        ".language_model.save_pretrained(other)",
    ),
    "swin": _BY_RATIO,
    "dinov2": _BY_RATIO,
    "convnext": _BY_STAGE,
    "convnextv2": _BY_STAGE,
}
