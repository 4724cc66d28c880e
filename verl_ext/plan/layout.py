"""Processes on devices: bytes by device, phase and purpose, and what cannot run at all."""

from collections.abc import Callable
from dataclasses import dataclass

from verl_ext.plan import memory
from verl_ext.plan.hardware import GIB, HardwareConfig
from verl_ext.plan.memory import Parts
from verl_ext.plan.run import Run

PHASES = ("load", "generate", "score", "update", "sync", "save")
"""Of a step, in order, after the start-up (`load`). Scoring overlaps generation: vLLM stays awake."""


@dataclass(frozen=True)
class Pool:
    """Devices (or hosts) that all hold the same."""

    name: str
    count: int
    capacity: int
    """Bytes of each."""
    phases: dict[str, Parts]
    """Bytes by phase and purpose."""

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that needs most, and its bytes."""
        return max(((phase, self.total(phase)) for phase in self.phases), key=lambda pair: pair[1])

    @property
    def fits(self) -> bool:
        return self.peak[1] <= self.capacity


def merge(*parts: Parts) -> Parts:
    """Sum by purpose; what takes nothing is left out, as is a cache for which nothing is left (see `problems`)."""
    keys = dict.fromkeys(key for part in parts for key in part)
    sums = {key: sum(max(0, part.get(key, 0)) for part in parts) for key in keys}
    return {key: value for key, value in sums.items() if value}


def _offloaded(run: Run) -> tuple[Parts, Parts]:
    """The trainer's tensors between its phases: on the device, and moved to the host."""
    device, host = memory.trainer_resident(run), {}
    moved = [
        *(["weights", "adapters"] if run.trainer.param_offload else []),
        *(["optimizer"] if run.trainer.optimizer_offload else []),
    ]
    for key in moved:
        host[f"offloaded {key}"] = device.pop(key)
    return device, host


def _student(run: Run, hardware: HardwareConfig) -> dict[str, Parts]:
    """One of the devices that trainer and vLLM share, or of the trainer's alone."""
    size = int(hardware.device_memory_gib * GIB)
    resident, _ = _offloaded(run)
    awake, asleep = memory.rollout_awake(run, size), memory.rollout_asleep(run, size)
    if run.rollout.devices:
        awake = asleep = {}
    before_training = {
        key: value for key, value in resident.items() if key != "optimizer"
    }  # Adam's first step makes it
    full_tensor = memory.largest_tensor(run.student) * run.trainer.weight_bytes
    adapters_only = run.trainer.lora_rank > 0
    sent = run.adapters * run.trainer.weight_bytes if adapters_only else full_tensor + 2 * run.rollout.bucket
    vllm_weights = {"vLLM weights": awake["vLLM weights"]} if run.rollout.sleeps and awake else {}
    return {
        "load": merge(before_training, awake),
        "generate": merge(resident, awake),
        "score": merge(resident, awake),
        "update": merge(memory.trainer_update(run), asleep),
        "sync": merge(memory.trainer_resident(run), asleep, vllm_weights, {"transfer": sent}),
        "save": merge(resident, asleep, {"transfer": full_tensor}),
    }


def _host(run: Run) -> dict[str, Parts]:
    """The main memory of the node of rank 0, which holds the whole model while it is loaded and exported."""
    trainer, student = run.trainer, run.student
    ranks = trainer.ranks_per_node
    model = student.total * trainer.weight_bytes
    processes = {"processes": memory.HOST_BASE + (ranks - 1) * memory.HOST_PER_RANK}
    _, moved = _offloaded(run)
    between = merge(processes, {key: value * ranks for key, value in moved.items()})
    asleep: Parts = {}
    if trainer.lora_rank and run.rollout.sleeps and run.device == "cuda":
        # vLLM's sleep level 1: the base, which no weight sync sends again, waits in main memory.
        asleep = {"sleeping vLLM weights": student.total * run.rollout.weight_bytes * ranks // run.rollout.tp}
    return {
        # verl builds a model with a tied head on no meta device: every rank reads it whole.
        "load": merge(processes, {"whole model": model * (ranks if student.tied else 1)}),
        "generate": between,
        "score": between,
        "update": merge(processes, asleep, {"activations": memory.kept_activations(run)[1] * ranks}),
        "sync": between,
        # verl gathers a whole model as it is; an adapter is merged into the base in fp32 (verl_ext/student/export.py).
        "save": merge(between, asleep, {"whole model": 4 * student.total if run.trainer.lora_rank else model}),
    }


def _replayed(run: Run) -> tuple[Parts, Parts]:
    """The replay buffer on a device and on the host of the trainer's process; it lies there from the start on."""
    buffer, key = run.replay, "replay buffer"
    if buffer.device == "cuda":
        return {key: buffer.tokens}, {key: buffer.index}
    return {}, {key: buffer.tokens + buffer.index}


def pools(run: Run, hardware: HardwareConfig) -> list[Pool]:
    """Every kind of device of a run, filled: trainer's with vLLM, the teacher's, and the first node's main memory."""
    size = int(hardware.device_memory_gib * GIB)
    static, scoring = memory.teacher_static(run, size), memory.teacher_scoring(run, size)
    teacher = {phase: merge(scoring if phase in ("generate", "score") else static) for phase in PHASES}
    on_device, on_host = _replayed(run)
    student = {phase: merge(parts, on_device) for phase, parts in _student(run, hardware).items()}
    host = {phase: merge(parts, on_host) for phase, parts in _host(run).items()}
    name = "trainer + vLLM" if not run.rollout.devices else "trainer"
    if hardware.teacher == "shared" or run.teacher.in_sampler:
        student, name = {phase: merge(student[phase], teacher[phase]) for phase in PHASES}, f"{name} + teacher"
    if hardware.unified_memory:
        student = {phase: merge(student[phase], host[phase]) for phase in PHASES}
    found = [Pool(name, run.trainer.ranks, hardware.capacity, student)]
    if run.rollout.devices:
        vllm = {phase: merge(memory.rollout_awake(run, size)) for phase in PHASES}
        found.append(Pool("vLLM", run.rollout.devices, hardware.capacity, vllm))
    if hardware.teacher == "own" and not run.teacher.in_sampler:
        found.append(Pool("teacher", run.teacher.tp * run.teacher.dp, hardware.capacity, teacher))
    if not hardware.unified_memory:
        found.append(Pool("main memory", 1, int(hardware.host_memory_gib * GIB), host))
    return found


def _divisibility(run: Run) -> list[str]:
    trainer, rollout, teacher = run.trainer, run.rollout, run.teacher
    found = []
    if run.sequences % trainer.ranks:
        found.append(
            f"data.train_batch_size: {run.sequences} samples a mini-batch (prompts x actor_rollout_ref.rollout.n) do "
            f"not divide among {trainer.ranks} ranks"
        )
    if trainer.ranks % trainer.shards:
        found.append(
            f"actor_rollout_ref.actor.fsdp_config.fsdp_size={trainer.shards} does not divide {trainer.ranks} ranks"
        )
    key = "actor_rollout_ref.rollout.tensor_model_parallel_size"
    if (ranks := rollout.devices or trainer.ranks) % rollout.tp:
        found.append(f"{key}={rollout.tp} does not divide {ranks} ranks")
    if run.student.heads % rollout.tp:
        found.append(f"{key}={rollout.tp} does not divide the student's {run.student.heads} heads")
    if run.teacher_shape.heads % teacher.tp:
        found.append(f"teacher.tp={teacher.tp} does not divide the teacher's {run.teacher_shape.heads} heads")
    if rollout.max_model_len < trainer.longest:
        found.append(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len} is below the longest prompt and response "
            f"of {trainer.longest} tokens"
        )
    return found


def _precision(run: Run, hardware: HardwareConfig) -> list[str]:
    trainer, teacher = run.trainer, run.teacher
    found = []
    if teacher.quantized and not hardware.fp8 and hardware.teacher != "elsewhere":
        key, fix = "teacher.quantization=fp8", "teacher=bf16 (or cpu_bf16)"
        if run.teacher_shape.fp8:
            key, fix = (
                f"teacher.model_path={teacher.path}",
                f"the bf16 checkpoint, teacher.model_path={teacher.path.removesuffix('-FP8')}",
            )
        found.append(f"{key}: {hardware.name} does not multiply FP8 matrices; use {fix}")
    if teacher.mode == "managed" and teacher.device != run.device:
        found.append(
            f"teacher.device={teacher.device} with trainer.device={run.device}: on {hardware.name} both are "
            f"{run.device}; use teacher={'cpu_fp32' if run.device == 'cpu' else 'bf16 or fp8'}"
        )
    if trainer.fused and not run.student.tied:
        found.append(
            "actor_rollout_ref.model.use_fused_kernels=true: verl 0.9.1 cannot fuse a head that FSDP2 shards apart "
            "from the embedding (untied); set it to false"
        )
    if trainer.fused and trainer.lora_rank and "lm_head" in trainer.targets:
        found.append(
            "actor_rollout_ref.model.target_modules: the fused log-prob kernel reads past an adapter on lm_head; take "
            "lm_head out or set use_fused_kernels=false"
        )
    return found


def _devices(run: Run, hardware: HardwareConfig) -> list[str]:
    trainer, teacher = run.trainer, run.teacher
    found = []
    if trainer.nodes > hardware.nodes or trainer.ranks_per_node > hardware.devices_per_node:
        found.append(
            f"trainer.nnodes={trainer.nodes}, trainer.n_gpus_per_node={trainer.ranks_per_node}: {hardware.name} has "
            f"{hardware.nodes} nodes of {hardware.devices_per_node}"
        )
    needed, sampling = 0 if teacher.in_sampler else teacher.tp * teacher.dp, run.rollout.devices
    if hardware.teacher != "own" and trainer.ranks + sampling > hardware.devices:
        found.append(
            f"pipeline.placement=separate: {trainer.ranks} for the trainer and {sampling} for vLLM are more than "
            f"{hardware.name}'s {hardware.devices} devices; set pipeline.placement=resident"
        )
    elsewhere = "; set hardware.teacher=elsewhere if its servers have other devices" * (teacher.mode == "external")
    if hardware.teacher == "own":
        if trainer.ranks + sampling + needed > hardware.devices:
            vllm = f", {sampling} for vLLM" * bool(sampling)
            found.append(
                f"trainer.n_gpus_per_node, teacher.tp, teacher.dp: {trainer.ranks} for the trainer{vllm} and {needed} "
                f"for the teacher are more than {hardware.name}'s {hardware.devices} devices{elsewhere}"
            )
        elif needed > hardware.devices_per_node:
            found.append(
                f"teacher.tp x teacher.dp = {needed}: a server lives on one node of {hardware.devices_per_node}"
            )
    if hardware.teacher == "shared" and needed > 1:
        found.append(f"teacher.tp x teacher.dp = {needed}: {hardware.name} shares one device; set both to 1{elsewhere}")
    if teacher.mode == "managed" and run.device == "cuda" and hardware.teacher != "elsewhere":
        if hardware.teacher == "shared" and not teacher.shares_device:
            found.append(
                f"teacher.share_device=false: a managed teacher takes a device of its own, and {hardware.name} has "
                "none left; set teacher.share_device=true"
            )
        if hardware.teacher == "own" and teacher.shares_device:
            found.append(
                "teacher.share_device=true: the plan gives the teacher devices of its own (hardware.teacher=own); set "
                "teacher.share_device=false, or hardware.teacher=shared"
            )
    return found


def _caches(run: Run, hardware: HardwareConfig) -> list[str]:
    size = int(hardware.device_memory_gib * GIB)
    found = []
    one_sequence = run.rollout.max_model_len * memory.kv_bytes(run.student, run.rollout.tp)
    cache = memory.rollout_awake(run, size)["vLLM KV cache"]
    if cache < one_sequence:
        found.append(
            f"actor_rollout_ref.rollout.gpu_memory_utilization={run.rollout.memory_fraction}: leaves {cache / GIB:.1f} "
            f"GiB for vLLM's KV cache, one sequence takes {one_sequence / GIB:.1f}"
        )
    cache = memory.teacher_static(run, size)["teacher KV cache"]
    one_sequence = run.trainer.longest * memory.kv_bytes(run.teacher_shape, run.teacher.tp)
    if hardware.teacher != "elsewhere" and not run.teacher.in_sampler and cache < one_sequence:
        found.append(
            f"teacher.mem_fraction_static={run.teacher.memory_fraction}: leaves {cache / GIB:.1f} GiB for the "
            f"teacher's KV cache beside its weights, one sequence takes {one_sequence / GIB:.1f}"
        )
    return found


CHECKS: tuple[Callable[[Run, HardwareConfig], list[str]], ...] = (
    lambda run, _: _divisibility(run),
    _precision,
    _devices,
    _caches,
)


def problems(run: Run, hardware: HardwareConfig) -> list[str]:
    """Why a run cannot work on a machine, memory aside; each line names the key and the fix. Empty: it can."""
    return [line for check in CHECKS for line in check(run, hardware)]


def overflows(run: Run, hardware: HardwareConfig) -> list[str]:
    """Which pools are too small, in which phase, by how much."""
    lines = []
    for pool in pools(run, hardware):
        phase, needed = pool.peak
        if not pool.fits:
            lines.append(f"{pool.name}: {phase} takes {needed / GIB:.1f} of {pool.capacity / GIB:.1f} GiB")
    return lines
