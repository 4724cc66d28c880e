"""A language model as numbers: its Hugging Face configuration, and the parameters that follow from it.

Shapes: `H` hidden, `I` intermediate, `Q` query width (heads x head size), `K` key width, `E` experts, `V` vocabulary,
`L` layers. The counts are those of transformers' decoders (`KINDS`) and are checked against them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LLAMA, QWEN2, QWEN3, QWEN3_MOE = "llama", "qwen2", "qwen3", "qwen3_moe"
KINDS = (LLAMA, QWEN2, QWEN3, QWEN3_MOE)
"""`model_type` of the decoders that are understood."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = PROJECTIONS[:4]
HEAD = "lm_head"


@dataclass(frozen=True)
class ModelShape:
    """What decides a decoder's size; counts are parameters."""

    hidden: int
    """Width of the residual stream."""
    layers: int
    """Decoder layers."""
    heads: int
    """Query heads of a layer."""
    kv_heads: int
    """Key (and value) heads of a layer."""
    head_size: int
    """Width of a head."""
    intermediate: int
    """Width of a dense MLP; where there are experts, of one expert."""
    vocab: int
    """Rows of the embedding."""
    tied: bool
    """The output head is the embedding."""
    experts: int = 0
    """Experts of a layer; 0 is a dense MLP."""
    active_experts: int = 0
    """Experts that a token passes through."""
    fp8: bool = False
    """The checkpoint's linear layers are FP8 (`quantization_config`)."""
    normed: bool = True
    """Queries and keys are normalised, as Qwen3's."""
    biased: bool = False
    """Queries, keys and values have biases, as Qwen2's."""

    @property
    def query(self) -> int:
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def root(self) -> int:
        """Largest group that is gathered outside the layers: a tied embedding and the norm, or one of the two."""
        return self.embedding + (self.hidden if self.tied else 0)

    @property
    def attention(self) -> int:
        """Of a layer, with its norms of queries and keys, or its biases."""
        beside = 2 * self.head_size * self.normed + (self.query + 2 * self.key) * self.biased
        return self.attention_matrices + beside

    @property
    def attention_matrices(self) -> int:
        """Of a layer: queries, keys, values, output."""
        return 2 * self.hidden * (self.query + self.key)

    @property
    def mlp(self) -> int:
        """Of a layer, with its router."""
        one = 3 * self.hidden * self.intermediate
        return self.experts * (one + self.hidden) if self.experts else one

    @property
    def layer(self) -> int:
        return self.attention + self.mlp + 2 * self.hidden

    @property
    def total(self) -> int:
        """Every parameter, a tied head once."""
        return self.layers * self.layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def active(self) -> int:
        """Parameters that one token passes through."""
        idle = (self.experts - self.active_experts) * 3 * self.hidden * self.intermediate if self.experts else 0
        return self.total - self.layers * idle

    @property
    def linear(self) -> int:
        """Parameters of the layers' linear modules, which FP8 turns into one byte each."""
        return self.layers * (self.attention_matrices + self.mlp - self.experts * self.hidden)

    @property
    def projections(self) -> tuple[str, ...]:
        """Linear modules of a layer, which LoRA adapts. Experts are none in transformers 5."""
        return ATTENTION if self.experts else PROJECTIONS

    @property
    def caching(self) -> int:
        """Layers that keep keys and values of every token."""
        return self.layers

    def _sides(self, module: str) -> tuple[int, int]:
        """Inputs and outputs of one of `projections`, in one layer."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key),
            "v_proj": (self.hidden, self.key),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }[module]

    def width(self, module: str) -> int:
        """Inputs and outputs of one of `projections`, in all layers together."""
        return self.layers * sum(self._sides(module))

    def weights(self, module: str) -> int:
        """Parameters of one of `projections`, in all layers together, without biases."""
        inputs, outputs = self._sides(module)
        return self.layers * inputs * outputs

    def lora(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of PEFT's adapters of `rank` on `targets`.

        Raises:
            ValueError: if a target is no module of this model that we adapt.
        """
        known = self.projections
        unknown = [name for name in targets if name not in (*known, HEAD)]
        if unknown:
            raise ValueError(
                f"actor_rollout_ref.model.target_modules: {', '.join(unknown)} is nothing that can be adapted here; "
                f"take of {', '.join(known)} and {HEAD}"
            )
        head = self.hidden + self.vocab if HEAD in targets else 0
        return rank * (sum(self.width(name) for name in targets if name in known) + head)


def shape_from(config: Mapping[str, Any]) -> ModelShape:
    """The shape behind a Hugging Face `config.json`.

    Raises:
        ValueError: if it is of another architecture, mixes dense layers and experts, has layers that see a window, or a
            number is none.
        KeyError: if a number is missing.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"model_type {kind!r}: only {', '.join(KINDS)} are known here")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError("attention_bias, mlp_bias: only models without them are known here")
    windows = {layer for layer in config.get("layer_types") or () if layer != "full_attention"}
    if windows or config.get("use_sliding_window"):
        raise ValueError(
            "layer_types, use_sliding_window: only models whose every layer sees all tokens are known here"
        )
    moe = kind == QWEN3_MOE
    if moe and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise ValueError(
            "mlp_only_layers, decoder_sparse_step: only models whose layers all have experts are known here"
        )
    heads, hidden = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    return ModelShape(
        hidden=hidden,
        layers=_number(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=_number(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads,
        head_size=_number(config, "head_dim") if config.get("head_dim") else hidden // heads,
        intermediate=_number(config, "moe_intermediate_size" if moe else "intermediate_size"),
        vocab=_number(config, "vocab_size"),
        tied=config["tie_word_embeddings"],
        experts=_number(config, "num_experts") if moe else 0,
        active_experts=_number(config, "num_experts_per_tok") if moe else 0,
        fp8=(config.get("quantization_config") or {}).get("quant_method") == "fp8",
        normed=kind in (QWEN3, QWEN3_MOE),
        biased=kind == QWEN2,
    )


def _number(config: Mapping[str, Any], key: str) -> int:
    value = config[key]
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r} must be a whole number above 0")
    return value
