"""The few numbers of a composed training configuration that decide its memory."""

from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_ext.plan.shape import UnknownModelError, load_shape
from verl_ext.run.model_shape import ModelShape
from verl_ext.teacher.config import BASE
from verl_ext.teacher.engines.known import engine_of

BYTES = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "auto": 2}
REPLAYED_TOKEN_BYTES, REPLAYED_TOP_BYTES, REPLAYED_INDEX_BYTES = 13, 8, 5
"""Of a stored token: id, two log-probs and mask; each of the teacher's `method.top_k` there; its part of the index."""
SEPARATE = "separate"
"""`pipeline.placement` of a vLLM with devices of its own."""
KV_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True)
class Trainer:
    """verl's FSDP2 actor; sizes are of one rank."""

    nodes: int
    ranks_per_node: int
    shards: int
    """Ranks that one copy of the weights is divided among."""
    weight_bytes: int
    """Bytes of a stored parameter, of its gradient and of each of its two Adam moments."""
    compute_bytes: int
    """Bytes of a gathered parameter and of an activation."""
    tokens: int
    """Of the largest micro-batch, padding included."""
    longest: int
    """Tokens of the longest prompt and response together."""
    lora_rank: int
    """0 trains every weight."""
    targets: tuple[str, ...]
    """Modules with an adapter."""
    nf4: bool
    """Their weights are kept in 4 bits (`update=qlora`)."""
    checkpointing: bool
    """Activations are recomputed layer by layer."""
    activation_offload: bool
    """They wait in main memory, those of two layers apart."""
    fused: bool
    """Log-probs are made in chunks, without the logits of a whole micro-batch."""
    entropy: bool
    """The policy's entropy is a metric."""
    compiled: bool
    """The entropy is one compiled kernel."""
    param_offload: bool
    optimizer_offload: bool

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True)
class Rollout:
    """vLLM."""

    devices: int
    """Of its own (`pipeline.placement=separate`); 0 on the trainer's."""
    tp: int
    weight_bytes: int
    memory_fraction: float
    """Share of a device that vLLM takes while awake."""
    kv_cache_gib: float
    """KV cache on a CPU, where there is no share."""
    max_sequences: int
    max_batched_tokens: int
    max_model_len: int
    sleeps: bool
    """Weights and KV cache are given back while the trainer updates."""
    bucket: int
    """Bytes that travel at once in a weight sync."""


@dataclass(frozen=True)
class Teacher:
    """The server that scores."""

    path: str
    mode: str
    fills_share: bool
    """Its KV cache takes what is left of its share of a GPU, whatever `max_total_tokens` is: vLLM."""
    shares_device: bool
    """A managed server on the trainer's device."""
    device: str
    tp: int
    dp: int
    weight_bytes: int
    quantized: bool
    """FP8 weights, made while loading or stored so."""
    memory_fraction: float
    """Share of a device for weights and KV cache."""
    max_total_tokens: int

    @property
    def in_sampler(self) -> bool:
        """It is the student's base, whose weights and cache are vLLM's."""
        return self.mode == BASE


@dataclass(frozen=True)
class Replay:
    """Stored samples of earlier steps, in the trainer's process."""

    device: str
    """Where the tokens lie, `cpu` or `cuda`."""
    tokens: int
    """Bytes of the tokens, all of them allocated at the start; 0 without a buffer."""
    index: int
    """Bytes on the host of what is noted of a sample, and of the tree above them."""


@dataclass(frozen=True)
class Run:
    """One training run, as far as memory depends on it."""

    student_path: str
    student: ModelShape
    teacher_shape: ModelShape
    device: str
    """`cpu` or `cuda`."""
    sequences: int
    """Of a mini-batch: prompts times samples of each."""
    trainer: Trainer
    rollout: Rollout
    teacher: Teacher
    replay: Replay

    @property
    def trained(self) -> int:
        """Parameters that get a gradient."""
        return self.adapters or self.student.total

    @property
    def adapters(self) -> int:
        """Parameters of LoRA's adapters."""
        return self.student.lora(self.trainer.lora_rank, self.trainer.targets) if self.trainer.lora_rank else 0

    @property
    def in_4_bits(self) -> int:
        """Parameters of the student that the trainer keeps in 4 bits."""
        targets = [name for name in self.trainer.targets if name in self.student.projections]
        return sum(map(self.student.weights, targets)) if self.trainer.nf4 else 0


def _targets(value: Any, student: ModelShape) -> tuple[str, ...]:
    if value == "all-linear" and student.experts:
        raise UnknownModelError(
            "actor_rollout_ref.model.target_modules=all-linear: PEFT adapts experts and router too, which is not "
            f"planned; name modules: [{', '.join(student.projections)}]"
        )
    if value == "all-linear":
        return student.projections  # PEFT leaves the output head out
    return tuple(value) if isinstance(value, (list, ListConfig)) else (value,)


def _read_trainer(config: DictConfig, student: ModelShape) -> Trainer:
    part, model, actor = config.actor_rollout_ref, config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    engine = actor.fsdp_config
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    mixed = engine.get("mixed_precision") or {"param_dtype": "bf16"}
    longest = config.data.max_prompt_length + config.data.max_response_length
    share = max(1, actor.ppo_mini_batch_size * part.rollout.n // ranks)
    sequences = share if actor.use_dynamic_bsz else min(share, actor.ppo_micro_batch_size_per_gpu)
    tokens = sequences * longest
    if actor.use_dynamic_bsz:
        tokens = min(tokens, max(actor.ppo_max_token_len_per_gpu, longest))
    return Trainer(
        nodes=config.trainer.nnodes,
        ranks_per_node=config.trainer.n_gpus_per_node,
        shards=ranks if engine.fsdp_size == -1 else min(engine.fsdp_size, ranks),
        weight_bytes=BYTES[engine.model_dtype],
        compute_bytes=BYTES[mixed["param_dtype"]],
        tokens=tokens // engine.ulysses_sequence_parallel_size,
        longest=longest,
        lora_rank=model.lora_rank,
        targets=_targets(model.target_modules, student),
        nf4=OmegaConf.select(model, "lora.base") == "nf4",
        checkpointing=model.enable_gradient_checkpointing,
        activation_offload=model.enable_activation_offload,
        fused=model.use_fused_kernels,
        entropy=actor.calculate_entropy,
        compiled=engine.use_torch_compile and model.use_remove_padding,
        param_offload=engine.param_offload,
        optimizer_offload=engine.optimizer_offload,
    )


def _read_rollout(config: DictConfig) -> Rollout:
    rollout = config.actor_rollout_ref.rollout
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    return Rollout(
        devices=rollout.nnodes * rollout.n_gpus_per_node if config.pipeline.placement == SEPARATE else 0,
        tp=rollout.tensor_model_parallel_size,
        weight_bytes=BYTES[rollout.dtype],
        memory_fraction=rollout.gpu_memory_utilization,
        kv_cache_gib=float(variables.get(KV_CACHE_VARIABLE, 0)),
        max_sequences=rollout.max_num_seqs,
        max_batched_tokens=rollout.max_num_batched_tokens,
        max_model_len=rollout.max_model_len or config.data.max_prompt_length + config.data.max_response_length,
        sleeps=rollout.free_cache_engine,
        bucket=rollout.checkpoint_engine.update_weights_bucket_megabytes * 2**20,
    )


def _read_replay(config: DictConfig, vocabulary: int) -> Replay:
    """The tighter of the buffer's two bounds holds; allocated as `verl_ext/trainer/replay/storage.py` does it."""
    replay, top_k = config.replay, config.method.top_k
    a_token = REPLAYED_TOKEN_BYTES + REPLAYED_TOP_BYTES * (vocabulary if top_k < 0 else top_k)
    tokens = min(replay.capacity_tokens, replay.capacity_bytes // (a_token + REPLAYED_INDEX_BYTES))
    tokens = tokens if replay.share else 0
    return Replay(replay.device, tokens * a_token, tokens * REPLAYED_INDEX_BYTES)


def read_run(config: DictConfig) -> Run:
    """The run that a composed `configs/on_policy_distillation.yaml` describes.

    Raises:
        ValueError: naming the key, if a model's numbers cannot be found, or the student lacks an adapted module.
    """
    student = load_shape("student.path", config.student.path)
    teacher_shape = load_shape("teacher.model_path", config.teacher.model_path)
    teacher = config.teacher
    run = Run(
        student_path=config.student.path,
        student=student,
        teacher_shape=teacher_shape,
        device=config.trainer.device,
        sequences=config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n,
        trainer=_read_trainer(config, student),
        rollout=_read_rollout(config),
        teacher=Teacher(
            path=teacher.model_path,
            mode=teacher.mode,
            fills_share=engine_of(teacher.engine).fills_share,
            shares_device=teacher.share_device,
            device=teacher.device,
            tp=teacher.tp,
            dp=teacher.dp,
            weight_bytes=BYTES[teacher.dtype],
            quantized=teacher.quantization == "fp8" or teacher_shape.fp8,
            memory_fraction=teacher.mem_fraction_static,
            max_total_tokens=teacher.max_total_tokens,
        ),
        replay=_read_replay(config, student.vocab),
    )
    _ = run.adapters  # refuses modules that the student does not have
    return run


def changed(run: Run, part: str, **values: Any) -> Run:
    """The run with fields of `trainer`, `rollout` or `teacher` replaced."""
    return replace(run, **{part: replace(vars(run)[part], **values)})
