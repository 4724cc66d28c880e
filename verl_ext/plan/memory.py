"""Bytes of each process in each phase: pure arithmetic.

Exact: weights, adapters, gradients, optimizer, KV cache. Worked out from the tensors that autograd keeps (transformers
5.9, verl 0.9.1's engine, FSDP2) and checked against measured memory by `benchmarks/plan_memory.py`, in fp32 on a CPU:
gathered weights, activations, logits. Estimates that nothing here has measured: the constants marked so, the fused
kernel, half precision and experts, and all engines' workspaces.
"""

from verl_ext.plan.hardware import GIB
from verl_ext.plan.run import Run
from verl_ext.run.model_shape import ModelShape

Parts = dict[str, int]
"""Bytes by what they are for."""

CONTEXT = {"cpu": int(0.08 * GIB), "cuda": int(1.0 * GIB)}
"""Libraries' own memory in the trainer's process: measured on the CPU; an estimate for CUDA, NCCL and cuBLAS."""
ENGINE_CONTEXT = int(0.6 * GIB)
"""CUDA context of an inference engine, kept asleep too (estimate)."""
CUDA_GRAPHS = int(0.5 * GIB)
"""vLLM's, beside its share of the device (estimate)."""
HOST_BASE = int(9.0 * GIB)
"""Ray, trainer, vLLM and SGLang without their models (measured on the CPU: docs/results/cpu-demo.md)."""
HOST_PER_RANK = int(2.0 * GIB)
"""Processes of each further rank (estimate)."""
EAGER_LOGITS, COMPILED_LOGITS, LOGITS_WITHOUT_ENTROPY = 7, 4, 5
"""Copies of a micro-batch's (tokens, vocabulary) logits that live at the backward's peak."""
FUSED_CHUNK, FUSED_COPIES = 512, 6
"""Tokens of a chunk of verl's fused log-prob kernel (FusedLinearForPPO), and its fp32 (chunk, vocabulary) tensors."""
NF4_BITS = 4.5
"""Of a weight in 4 bits, with its part of a block's scale."""
UNPACKING_BYTES = 10
"""Of a weight that is made whole: two fp32 copies, or codes and one, and the result."""
SCORED_TOKENS = 2048
"""Tokens whose logits a server holds at once while scoring: SGLang's chunk (0.5.17 on), vLLM's as we start it."""
PREFILL_TOKENS = 8192
"""Tokens that an engine prefills at once."""


def layer_activations(shape: ModelShape, compute_bytes: int, *, lora_rank: int, modules: int) -> int:
    """Bytes per token that autograd keeps of one layer.

    fp32: two residual sums, two RMSNorms' normalised and (where its weight is trained) scaled outputs; queries and
    keys as projected, normalised and rotated, values, the attention's output; gate, up, silu(gate) and their product.
    Half precision: norms work on an fp32 copy. LoRA: no normalised inputs of frozen norms, a rank-wide output a module.
    """
    hidden, query, key = shape.hidden, shape.query, shape.key
    frozen = lora_rank > 0
    if compute_bytes == 4:
        attention = 4 * (4 * hidden + 3 * (query + key)) if frozen else 4 * (6 * hidden + 4 * (query + key))
    else:
        attention = 12 * hidden + 8 * (query + key) if frozen else 16 * hidden + 10 * (query + key)
    per_expert = 4 * shape.intermediate
    if shape.experts:
        mlp = compute_bytes * shape.active_experts * (per_expert + 2 * hidden) + 8 * shape.experts
    else:
        mlp = compute_bytes * per_expert
    return attention + mlp + compute_bytes * lora_rank * modules


def logits(run: Run) -> int:
    """Bytes of logits and what is made of them, at their peak."""
    trainer, vocab = run.trainer, run.student.vocab
    if trainer.fused:
        head_gradients = run.student.embedding * trainer.compute_bytes * (1 if trainer.lora_rank else 2)
        return FUSED_COPIES * 4 * min(FUSED_CHUNK, trainer.tokens) * vocab + head_gradients
    copies = LOGITS_WITHOUT_ENTROPY
    if trainer.entropy:
        copies = COMPILED_LOGITS if trainer.compiled else EAGER_LOGITS
    return copies * trainer.tokens * vocab * trainer.compute_bytes


def trainer_resident(run: Run) -> Parts:
    """What the trainer holds between its phases, were nothing offloaded."""
    trainer = run.trainer
    return {
        "context": CONTEXT[run.device],
        "weights": (run.student.total - run.in_4_bits) * trainer.weight_bytes // trainer.shards + packed(run),
        "adapters": run.adapters * trainer.weight_bytes // trainer.shards,
        "optimizer": 2 * run.trained * trainer.weight_bytes // trainer.shards,
    }


def _whole_layer(run: Run) -> int:
    """Bytes of a micro-batch's activations of one layer, while it is computed."""
    trainer = run.trainer
    modules = len([name for name in trainer.targets if name != "lm_head"]) if trainer.lora_rank else 0
    sizes = {"lora_rank": trainer.lora_rank, "modules": modules}
    return trainer.tokens * layer_activations(run.student, trainer.compute_bytes, **sizes)


def _stream(run: Run) -> int:
    """Bytes of what goes from one layer to the next."""
    return run.trainer.tokens * run.student.hidden * run.trainer.compute_bytes


def kept_activations(run: Run) -> tuple[int, int]:
    """Bytes of all layers' activations between forward and backward pass, on the device and on the host.

    With activation offload verl keeps those of two layers on the device, and offloads nothing of fewer than three.
    """
    layers = run.student.layers
    moved = max(0, layers - 2) if run.trainer.activation_offload else 0
    each = _stream(run) if run.trainer.checkpointing else _whole_layer(run)
    return (layers - moved) * each, moved * each


def packed(run: Run) -> int:
    """Bytes of the weights in 4 bits, whole on every rank (`verl_ext/trainer/nf4.py`)."""
    return int(run.in_4_bits * NF4_BITS / 8)


def unpacked(run: Run) -> int:
    """Bytes of the largest such weight while it is made whole."""
    if not run.in_4_bits:
        return 0
    named = [name for name in run.trainer.targets if name in run.student.projections]
    return UNPACKING_BYTES * max(map(run.student.weights, named)) // run.student.layers


def trainer_update(run: Run) -> Parts:
    """The update's peak: the larger of the logits' backward and one layer's."""
    trainer, shape = run.trainer, run.student
    per_layer = _whole_layer(run)
    kept = kept_activations(run)[0] + 3 * _stream(run)
    gathered = shape.root * trainer.compute_bytes
    at_logits = {"gathered": gathered, "activations": kept, "logits": logits(run)}
    # Backward of a layer: its weights (and the next ones', fetched ahead), their gradients before and while reduced.
    sharded = shape.layer - run.in_4_bits // shape.layers
    layers_gathered = sharded * trainer.compute_bytes * (2 if trainer.shards > 1 else 1) + unpacked(run)
    trained_layer = 0 if trainer.lora_rank else shape.layer * (trainer.compute_bytes + 4)
    head_gradient = 0 if trainer.lora_rank else shape.root * trainer.compute_bytes
    recomputed = per_layer if trainer.checkpointing else 0
    at_layer = {
        "gathered": gathered + layers_gathered + trained_layer + head_gradient,
        "activations": kept + recomputed + 2 * trainer.tokens * shape.intermediate * trainer.compute_bytes,
        "logits": 0,
    }
    gradients = {"gradients": run.trained * trainer.weight_bytes // trainer.shards}
    return trainer_resident(run) | gradients | max(at_logits, at_layer, key=lambda parts: sum(parts.values()))


def stored_bytes(shape: ModelShape, weight_bytes: int, *, fp8: bool) -> int:
    """Bytes of an engine's weights; FP8 keeps embeddings, head, norms and routers as they were, and a scale a block."""
    if not fp8:
        return shape.total * weight_bytes
    return shape.linear + shape.linear * 4 // 128**2 + (shape.total - shape.linear) * weight_bytes


def kv_bytes(shape: ModelShape, tp: int) -> int:
    """Bytes of one token's keys and values on one of `tp` ranks (bf16; fewer heads than ranks are repeated)."""
    return 2 * shape.caching * max(1, shape.kv_heads // tp) * shape.head_size * 2


def _workspace(shape: ModelShape, tokens: int, logits_rows: int, tp: int) -> int:
    """Bytes of an engine's forward pass: two layers' tensors, and fp32 logits with a copy (estimate)."""
    width = (
        shape.hidden * 4
        + (2 * (shape.query + 2 * shape.key) + 3 * shape.intermediate * max(1, shape.active_experts)) // tp
    )
    return 2 * tokens * width + 2 * 4 * logits_rows * shape.vocab // tp


def rollout_awake(run: Run, device_memory: int) -> Parts:
    """vLLM while it samples: on a GPU its share of the device, of which the KV cache is the rest. May be negative."""
    rollout, shape = run.rollout, run.student
    weights = shape.total * rollout.weight_bytes // rollout.tp
    workspace = _workspace(shape, rollout.max_batched_tokens, rollout.max_sequences, rollout.tp)
    if run.device == "cpu":
        return {"vLLM weights": weights, "vLLM KV cache": int(rollout.kv_cache_gib * GIB), "vLLM workspace": workspace}
    share = int(rollout.memory_fraction * device_memory)
    kv_cache = share - weights - workspace - ENGINE_CONTEXT
    extra = workspace + ENGINE_CONTEXT + CUDA_GRAPHS
    return {"vLLM weights": weights, "vLLM KV cache": kv_cache, "vLLM workspace": extra}


def rollout_asleep(run: Run, device_memory: int) -> Parts:
    """vLLM while the trainer updates."""
    if not run.rollout.sleeps:
        return rollout_awake(run, device_memory)
    return {"vLLM workspace": ENGINE_CONTEXT + CUDA_GRAPHS if run.device == "cuda" else 0}


def teacher_static(run: Run, device_memory: int) -> Parts:
    """Weights and KV cache of its server on one device. The cache may be negative: the weights exceed the share."""
    teacher, shape = run.teacher, run.teacher_shape
    if teacher.in_sampler:  # vLLM's weights and cache
        return {"teacher weights": 0, "teacher KV cache": 0, "teacher workspace": 0}
    weights = stored_bytes(shape, teacher.weight_bytes, fp8=teacher.quantized) // teacher.tp
    wanted = teacher.max_total_tokens * kv_bytes(shape, teacher.tp) * teacher.weight_bytes // 2
    context = 0
    if teacher.device == "cuda":
        left = int(teacher.memory_fraction * device_memory) - weights
        wanted = left if teacher.fills_share else min(wanted, left)
        context = ENGINE_CONTEXT
    return {"teacher weights": weights, "teacher KV cache": wanted, "teacher workspace": context}


def teacher_scoring(run: Run, device_memory: int) -> Parts:
    """The teacher's server while it scores."""
    parts = teacher_static(run, device_memory)
    tokens = min(PREFILL_TOKENS, run.teacher.max_total_tokens)
    parts["teacher workspace"] += _workspace(run.teacher_shape, tokens, min(SCORED_TOKENS, tokens), run.teacher.tp)
    return parts


def largest_tensor(shape: ModelShape) -> int:
    """Parameters of the largest single tensor: an embedding, or a layer's experts."""
    return max(shape.embedding, 2 * shape.experts * shape.hidden * shape.intermediate)
