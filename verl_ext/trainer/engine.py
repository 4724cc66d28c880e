"""verl's FSDP engine, which reads a prompt once for all the samples that answer it, and its head where answers are.

The update of a group of n samples takes the prompt n times through the model in verl, and every prompt token through
the head, whose logits no loss reads. Here a group is one row, prompt and answers side by side, in which an answer sees
its prompt and itself; positions count on from the prompt in each. The log-probs, entropies and gradients are those of
separate rows, in another order of summation.

It takes part where sequences are padded (`actor_rollout_ref.model.use_remove_padding=false`), for models whose every
layer attends so (`shared_attention.py`). All else goes verl's way. verl lets `VERL_ENGINE_VENDOR` name an engine: ours
is `VENDOR`.

Shapes: `B` samples, `G` groups, `P` longest prompt, `L` columns of a packed row, `N` response tokens of all samples,
`V` vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from verl_ext.ledger.flops import Work, sequence, shared_prompt
from verl_ext.method.token_logprobs import token_logprobs_
from verl_ext.trainer.nf4 import NF4, freeze_in_4_bits
from verl_ext.trainer.shared_attention import ANY, SharedRows, shared_rows

Tensor = torch.Tensor

_Engine: Any = FSDPEngineWithLMHead  # verl's register decorator hides the class from pyright

VENDOR = "verl_ext"
READ = "actor/read_"
"""Begins the metrics that hold a `Work`; the trainer takes them out again (`spending.py`)."""
MASKABLE = ("llama", "qwen2", "qwen3")
"""`model_type` of dense transformers that attend to all earlier tokens, in every layer whose type is not another."""


@dataclass(frozen=True)
class SharedPrompts:
    """A micro-batch with each prompt once."""

    input_ids_GL: Tensor
    position_ids_GL: Tensor
    attention: SharedRows
    columns: int
    """How many columns from the right make logits that somebody reads: from the last prompt token on."""
    rows_N: Tensor
    columns_N: Tensor
    """Where, in those columns, a response token is predicted."""
    labels_N: Tensor
    positions_N: Tensor
    """Where it belongs in the values of a nested tensor of whole sequences."""
    samples_N: Tensor
    work: Work
    """Each prompt once, and the responses."""


def share_prompts(prompts: Any, responses: Any) -> SharedPrompts:
    """Put the answers to one prompt side by side behind it.

    Prompts end in column P - 1, so that all answers begin in column P.

    Args:
        prompts: token ids, nested over the samples; samples of one prompt need not be neighbours.
        responses: token ids, nested over the samples.
    """
    prompt_lengths, response_lengths = (nested.offsets().diff().tolist() for nested in (prompts, responses))
    groups: dict[tuple[int, ...], list[int]] = {}
    for sample, prompt in enumerate(prompts.unbind()):
        groups.setdefault(tuple(prompt.tolist()), []).append(sample)
    widest = max(len(prompt) for prompt in groups)
    length = widest + max(1, *(sum(response_lengths[sample] for sample in samples) for samples in groups.values()))
    input_ids = torch.zeros(len(groups), length, dtype=torch.long)
    position_ids = torch.zeros(len(groups), length, dtype=torch.long)
    rows, columns = [0] * len(response_lengths), [0] * len(response_lengths)
    answers = responses.unbind()
    for row, (prompt, samples) in enumerate(groups.items()):
        input_ids[row, widest - len(prompt) : widest] = torch.tensor(prompt)
        position_ids[row, widest - len(prompt) : widest] = torch.arange(len(prompt))
        column = widest
        for sample in samples:
            end = column + response_lengths[sample]
            input_ids[row, column:end] = answers[sample]
            position_ids[row, column:end] = torch.arange(len(prompt), len(prompt) + response_lengths[sample])
            rows[sample], columns[sample] = row, column
            column = end
    lengths_B = torch.tensor(response_lengths)
    samples_N = torch.arange(len(lengths_B)).repeat_interleave(lengths_B)
    token_N = torch.arange(len(samples_N)) - (lengths_B.cumsum(0) - lengths_B)[samples_N]
    starts_B = (torch.tensor(prompt_lengths) + lengths_B).cumsum(0) - lengths_B
    before_N = torch.tensor(columns)[samples_N] - widest + token_N  # the column that predicts it, counted from P - 1
    return SharedPrompts(
        input_ids_GL=input_ids,
        position_ids_GL=position_ids,
        attention=shared_rows(
            [len(prompt) for prompt in groups], rows, [column - widest for column in columns], response_lengths
        ),
        columns=length - widest + 1,
        rows_N=torch.tensor(rows)[samples_N],
        columns_N=torch.where(token_N == 0, 0, before_N),
        labels_N=responses.values(),
        positions_N=starts_B[samples_N] - 1 + token_N,
        samples_N=samples_N,
        work=sum(
            (shared_prompt(len(prompt), [response_lengths[i] for i in samples]) for prompt, samples in groups.items()),
            Work(),
        ),
    )


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu"], vendor=VENDOR)
class SharedPromptEngine(_Engine):
    """verl's engine for a language model; what goes into the model and what comes out differ, and with `update=qlora`
    what the adapters stand on."""

    def _build_lora_module(self, module: Any) -> Any:
        adapted = super()._build_lora_module(module)
        if self.model_config.lora.get("base") == NF4:
            freeze_in_4_bits(adapted)
        return adapted

    def forward_step(self, micro_batch: Any, loss_function: Any, forward_only: bool) -> tuple[Any, dict[str, Any]]:
        """As verl, with what the model read among the metrics of an update."""
        loss, output = super().forward_step(micro_batch, loss_function=loss_function, forward_only=forward_only)
        if not forward_only:
            output["metrics"] |= as_metrics(self._work)
        return loss, output

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if not self._shares(micro_batch):
            lengths = micro_batch["input_ids"].offsets().diff().tolist()
            self._work = sum((sequence(length) for length in lengths), Work())
            return super().prepare_model_inputs(micro_batch=micro_batch)
        packed = share_prompts(micro_batch["prompts"].cpu(), micro_batch["responses"].cpu())
        self._work = packed.work
        device = micro_batch["input_ids"].device
        inputs = {
            "input_ids": packed.input_ids_GL.to(device),
            "position_ids": packed.position_ids_GL.to(device),
            "attention_mask": ANY.to(device),
            "shared": packed.attention.to(device),
            "logits_to_keep": packed.columns,
        }
        return inputs, {"packed": packed}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """`log_probs`, and `entropy` where it is asked for: nested over whole sequences, 0 where no loss reads."""
        if "packed" not in output_args:
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        packed: SharedPrompts = output_args["packed"]
        columns, vocabulary = output.logits.shape[1:]
        logits_RV = output.logits.reshape(-1, vocabulary)
        device = logits_RV.device
        rows_N = (packed.rows_N * columns + packed.columns_N).to(device)
        temperature = micro_batch["temperature"]
        if isinstance(temperature, Tensor):  # a sample's own; samples of one prompt share the row of its last token
            logits_RV = logits_RV[rows_N] / temperature[packed.samples_N, None].to(logits_RV.dtype)
            rows_N, temperature = torch.arange(len(rows_N), device=device), 1.0
        asked = bool(tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False))
        labels_N = packed.labels_N.to(device)
        logprobs_N, entropy_R = token_logprobs_(logits_RV, rows_N, labels_N, temperature=temperature, entropy=asked)
        found = {"log_probs": logprobs_N}
        if entropy_R is not None:
            # A gradient that the loss multiplies with 0 costs as much as one that it uses.
            used = bool(tu.get_non_tensor_data(micro_batch, "entropy_is_trained", default=True))
            found["entropy"] = (entropy_R if used else entropy_R.detach())[rows_N]
        input_ids = micro_batch["input_ids"]
        return {key: _whole(value_N, packed.positions_N, input_ids) for key, value_N in found.items()}

    def _shares(self, micro_batch: Any) -> bool:
        """Whether a micro-batch is ours: padded text, of a model that attends as it is told, no logits for a loss."""
        asked = ("use_fused_kernels", "distillation_use_topk", "calculate_sum_pi_squared")
        return (
            not tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True)
            and not any(tu.get_non_tensor_data(micro_batch, key, default=False) for key in asked)
            and micro_batch["position_ids"].dim() == 2
            and attends_to_all(self.module.config)
        )


def as_metrics(work: Work) -> dict[str, Metric]:
    """What a micro-batch was, so that verl adds it up over those of a mini-batch, and takes the mean over ranks."""
    return {f"{READ}{name}": Metric(AggregationType.SUM, float(value)) for name, value in vars(work).items()}


def attends_to_all(config: Any) -> bool:
    """Whether every layer of a model attends to all earlier tokens, by transformers' `sdpa`."""
    layers = getattr(config, "layer_types", None) or []
    return (
        config.model_type in MASKABLE
        and config._attn_implementation == "sdpa"
        and all(layer == "full_attention" for layer in layers)
    )


def _whole(value_N: Tensor, positions_N: Tensor, input_ids: Any) -> Tensor:
    """Nested over the sequences of `input_ids`, with `value_N` at its positions."""
    values = value_N.new_zeros(input_ids.values().shape).index_put((positions_N.to(value_N.device),), value_N)
    return torch.nested.nested_tensor_from_jagged(values, input_ids.offsets())
