"""Which single change makes a run fit: each is tried and the run planned again."""

from collections.abc import Iterator
from dataclasses import dataclass

from verl_ext.plan.hardware import HardwareConfig
from verl_ext.plan.layout import overflows, problems
from verl_ext.plan.run import Run, changed

ACTOR, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
FRACTIONS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Change:
    """One change of a command line, and the run that it makes."""

    overrides: str
    """What to add to the command line."""
    run: Run


def _trainer_changes(run: Run) -> Iterator[Change]:
    trainer = run.trainer
    if not trainer.checkpointing:
        yield Change(f"{MODEL}.enable_gradient_checkpointing=true", changed(run, "trainer", checkpointing=True))
    if not trainer.fused:
        yield Change(f"{MODEL}.use_fused_kernels=true", changed(run, "trainer", fused=True))
    if trainer.tokens > trainer.longest:
        words = f"{ACTOR}.use_dynamic_bsz=true {ACTOR}.ppo_max_token_len_per_gpu={trainer.longest}"
        yield Change(words, changed(run, "trainer", tokens=trainer.longest))
    if not trainer.optimizer_offload:
        yield Change(f"{ACTOR}.fsdp_config.optimizer_offload=true", changed(run, "trainer", optimizer_offload=True))
    if not (trainer.optimizer_offload and trainer.param_offload):
        words = f"{ACTOR}.fsdp_config.param_offload=true {ACTOR}.fsdp_config.optimizer_offload=true"
        yield Change(words, changed(run, "trainer", param_offload=True, optimizer_offload=True))
    if trainer.weight_bytes == 4 and run.device == "cuda":
        yield Change(f"{ACTOR}.fsdp_config.model_dtype=bf16", changed(run, "trainer", weight_bytes=2))
    if not trainer.lora_rank:
        yield Change("update=lora", changed(run, "trainer", lora_rank=32, targets=run.student.projections))
    elif not trainer.nf4:
        yield Change("update=qlora", changed(run, "trainer", nf4=True))


def _fractions_near(value: float) -> list[float]:
    """Other shares of a device, the nearest first."""
    return sorted((fraction for fraction in FRACTIONS if fraction != value), key=lambda x: abs(x - value))


def _engine_changes(run: Run, hardware: HardwareConfig) -> Iterator[Change]:
    rollout, teacher = run.rollout, run.teacher
    if not rollout.sleeps and run.device == "cuda":
        yield Change(f"{ROLLOUT}.free_cache_engine=true", changed(run, "rollout", sleeps=True))
    for fraction in _fractions_near(rollout.memory_fraction) if run.device == "cuda" else ():
        yield Change(f"{ROLLOUT}.gpu_memory_utilization={fraction}", changed(run, "rollout", memory_fraction=fraction))
    if run.device == "cuda" and rollout.tp * 2 <= run.trainer.ranks:
        yield Change(
            f"{ROLLOUT}.tensor_model_parallel_size={rollout.tp * 2}", changed(run, "rollout", tp=rollout.tp * 2)
        )
    if hardware.teacher == "elsewhere":
        return
    if hardware.teacher == "shared" and not teacher.shares_device:
        yield Change("teacher.share_device=true", changed(run, "teacher", shares_device=True))
    if teacher.device == "cuda" and not teacher.quantized:
        yield Change("teacher=fp8", changed(run, "teacher", quantized=True))
    if teacher.device == "cpu" and teacher.weight_bytes == 4:
        yield Change("teacher=cpu_bf16", changed(run, "teacher", weight_bytes=2))
    for fraction in _fractions_near(teacher.memory_fraction) if teacher.device == "cuda" else ():
        yield Change(f"teacher.mem_fraction_static={fraction}", changed(run, "teacher", memory_fraction=fraction))
    if hardware.teacher == "own" and teacher.tp * teacher.dp * 2 + run.trainer.ranks <= hardware.devices:
        yield Change(f"teacher.tp={teacher.tp * 2}", changed(run, "teacher", tp=teacher.tp * 2))


def single_changes(run: Run, hardware: HardwareConfig) -> list[Change]:
    """The changes, one at a time, with which the run has no problem and overflows nothing."""
    tried = [*_trainer_changes(run), *_engine_changes(run, hardware)]
    good = [change for change in tried if not problems(change.run, hardware) and not overflows(change.run, hardware)]
    first: dict[str, Change] = {}
    for change in good:  # of several values of one key the first, which is the least departure
        first.setdefault(change.overrides.split("=")[0], change)
    return list(first.values())
