"""The shape of a model of any architecture: transformers builds it from its configuration on torch's meta device.

No weight is allocated or read: a model of 30 B parameters takes a fraction of a second, beside the import of torch. The
families of `verl_ext.run.model_shape.KINDS` are worked out by formula, without torch, to the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_ext.run.model_shape import ModelShape

FUSED_EXPERTS_DIMENSIONS = 3
"""transformers keeps the experts of a layer as tensors (expert, out, in)."""
LONGEST_REASON = 200
READ_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads")
ATTENTION = "attention"
"""In the name of a layer's type (`layer_types`): it keeps keys and values, unless the attention is linear."""
LINEAR_ATTENTION = "linear_attention"


@dataclass(frozen=True, kw_only=True)
class CountedShape(ModelShape):
    """A decoder whose parameters were counted; widths of activations and caches are its configuration's."""

    parameters: int
    """All, a tied head once; of a composite model also those that see pictures or hear."""
    largest_layer: int
    """Of the largest module that FSDP2 gathers as one."""
    outside: int
    """Of none of these modules."""
    in_linears: int
    """Of the layers' linear modules and experts, without biases."""
    in_experts: int
    keeping: int
    """Layers that keep keys and values of every token (of a window too: an upper bound)."""
    widths: Mapping[str, int]
    """Of each linear module of the layers by name: inputs and outputs, in all layers together."""
    counts: Mapping[str, int]
    """The same: parameters, without biases."""

    @property
    def total(self) -> int:
        return self.parameters

    @property
    def layer(self) -> int:
        return self.largest_layer

    @property
    def root(self) -> int:
        return self.outside if self.tied else max(self.embedding, self.outside - 2 * self.embedding)

    @property
    def linear(self) -> int:
        return self.in_linears

    @property
    def active(self) -> int:
        idle = self.in_experts * (self.experts - self.active_experts) // self.experts if self.experts else 0
        return self.parameters - idle

    @property
    def caching(self) -> int:
        return self.keeping

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(self.widths)

    def width(self, module: str) -> int:
        return self.widths[module]

    def weights(self, module: str) -> int:
        return self.counts[module]


def count(config: Mapping[str, Any]) -> CountedShape:
    """The shape behind a Hugging Face `config.json`.

    Raises:
        ValueError: if transformers does not know the architecture, or its layers are none that the planner can tell.
    """
    model = _on_meta(config)
    text = model.config.get_text_config()
    numbers = text.to_dict()
    if missing := [key for key in READ_KEYS if not isinstance(numbers.get(key), int)]:
        raise ValueError(f"its configuration has no single {missing[0]}; {_without()}")
    if numbers.get("kv_lora_rank"):
        raise ValueError(f"multi-head latent attention (kv_lora_rank), whose cache is not known here; {_without()}")
    hidden, layers, heads = (numbers[key] for key in READ_KEYS)
    found = _layers(model)
    if len(found) != layers:
        raise ValueError(f"transformers names {len(found)} modules of {layers} layers; {_without()}")
    experts, each = _experts(found)
    active = numbers.get("num_experts_per_tok")
    if experts and not isinstance(active, int):
        raise ValueError(f"it has experts, and num_experts_per_tok does not say how many see a token; {_without()}")
    intermediate = each // (3 * hidden) if experts else numbers.get("intermediate_size")
    if not isinstance(intermediate, int):
        raise ValueError(f"its configuration has no single intermediate_size; {_without()}")
    sizes = [_parameters(layer) for layer in found]
    total = _parameters(model)
    linears = [(name.rpartition(".")[2], module) for layer in found for name, module in _linears(layer)]
    widths: dict[str, int] = {}
    counts: dict[str, int] = {}
    for name, module in linears:
        widths[name] = widths.get(name, 0) + module.in_features + module.out_features
        counts[name] = counts.get(name, 0) + module.weight.numel()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    in_experts = sum(_in_experts(layer) for layer in found)
    return CountedShape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=numbers.get("num_key_value_heads") or heads,
        head_size=numbers.get("head_dim") or hidden // heads,
        intermediate=intermediate,
        vocab=embedding.shape[0],
        tied=head is embedding,
        experts=experts,
        active_experts=active if experts and isinstance(active, int) else 0,
        fp8=(config.get("quantization_config") or {}).get("quant_method") == "fp8",
        parameters=total,
        largest_layer=max(sizes),
        outside=total - sum(sizes),
        in_linears=sum(module.weight.numel() for _, module in linears) + in_experts,
        in_experts=in_experts,
        keeping=_keeping(numbers.get("layer_types"), layers),
        widths=widths,
        counts=counts,
    )


def _without() -> str:
    return "leave out hardware=NAME to run without a plan"


def _on_meta(config: Mapping[str, Any]) -> Any:
    """The model, whole where it is composite."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    settings = {key: value for key, value in config.items() if key not in ("model_type", "quantization_config")}
    kind = config.get("model_type")
    try:
        known = AutoConfig.for_model(str(kind), **settings)
        auto = AutoModelForCausalLM if known.get_text_config() is known else AutoModelForImageTextToText
        with torch.device("meta"):
            return auto.from_config(known)
    except (StrictDataclassError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:LONGEST_REASON]
        raise ValueError(
            f"transformers builds no language model of model_type {kind!r} ({why}); {_without()}"
        ) from None


def _layers(model: Any) -> list[Any]:
    """What verl's FSDP2 wraps of the text decoder: every module of a class that transformers would not split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.get_decoder().modules() if type(module).__name__ in names]


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _linears(layer: Any) -> list[tuple[str, Any]]:
    import torch

    return [(name, module) for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]


def _expert_tensors(layer: Any) -> list[Any]:
    """Of modules of transformers' own: a convolution's weight has three dimensions too."""
    return [
        parameter
        for module in layer.modules()
        if not type(module).__module__.startswith("torch.")
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == FUSED_EXPERTS_DIMENSIONS
    ]


def _in_experts(layer: Any) -> int:
    return sum(tensor.numel() for tensor in _expert_tensors(layer))


def _experts(layers: Sequence[Any]) -> tuple[int, int]:
    """Experts of a layer that has some, and parameters of one; zeros where none has."""
    for layer in layers:
        if tensors := _expert_tensors(layer):
            return tensors[0].shape[0], _in_experts(layer) // tensors[0].shape[0]
    return 0, 0


def _keeping(types: Any, layers: int) -> int:
    """Layers that keep keys and values."""
    if types is None:
        return layers
    return len([kind for kind in types if ATTENTION in kind and kind != LINEAR_ATTENTION])
