"""Train a student on its own samples, scored token by token by a teacher (reverse KL).

    python -m recipe.on_policy_distillation platform=cpu student.path=MODEL \
        data.train_files=train.parquet data.val_files=heldout.parquet

`--help` and `--cfg job` show every setting; any of them can be overridden on the command line.
"""

import sys
import time
from pathlib import Path
from typing import Any

import hydra
import ray
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayError

from verl_ext import preflight
from verl_ext.config import check_given, check_method, mapping_of
from verl_ext.console import RunConsole
from verl_ext.launch import as_actor, mark_stage, ray_session
from verl_ext.model_card import write_cards
from verl_ext.plan.check import check_plan
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.service import identify, teachers_of
from verl_ext.verbs import prepare_training_configs


def check(config: DictConfig) -> str:
    """Refuse a run that cannot work; else say how it fits in memory. Raises ValueError naming the key and the fix."""
    check_given(config, "student.path", "data.train_files", "data.val_files")
    check_method(config)
    teachers = teachers_of(config)
    planned = check_plan(config)
    preflight.check_sampling(config.actor_rollout_ref.rollout)
    preflight.check_model("student.path", config.student.path)
    rows = preflight.check_rows("data.train_files", config.data.train_files)
    preflight.check_rows("data.val_files", config.data.val_files)
    preflight.check_batch(config.data.train_batch_size, len(rows))
    preflight.check_routing(rows, teachers)
    if config.trainer.device == "cpu":
        preflight.check_memory(config.student.path)
    student_tokenizer = preflight.load_tokenizer(config.student.path)
    for teacher in teachers.values():
        check_teacher(teacher, config.student.path, student_tokenizer)
    context_lengths = [teacher.context_length for teacher in teachers.values() if teacher.context_length is not None]
    preflight.check_prompt_lengths(
        rows,
        student_tokenizer,
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.data.max_response_length,
        teacher_context_length=min(context_lengths, default=None),
        template_kwargs=mapping_of(config.data.apply_chat_template_kwargs),
    )
    return planned


def check_teacher(teacher: TeacherConfig, student_path: str, student_tokenizer: Any) -> None:
    """Refuse a teacher that cannot score this student."""
    if teacher.mode == "managed" and teacher.model_path:
        preflight.check_model("teacher.model_path", teacher.model_path)
        if teacher.store_mode != "replay":
            teacher.check_exposure()
            preflight.check_interpreter("teacher.python", teacher.python)
    elif teacher.store_mode != "replay":
        preflight.check_external_teacher(teacher, vocab_size=2)
    if teacher.model_path and teacher.model_path != student_path:
        preflight.check_same_tokenizer(student_tokenizer, preflight.load_tokenizer(teacher.model_path))


def start_teachers(config: DictConfig) -> dict[Any, tuple[str, Any]]:
    """Start every managed server that will be asked; from here on the run sees servers that somebody else started.

    Returns, by the reference that is ready when its server is, the teacher's name and actor: an actor lives as long
    as somebody holds it.
    """
    from verl_ext.teacher.managed import ManagedTeacher, with_absolute_paths

    ready = {}
    for name, teacher in teachers_of(config).items():
        node = config.teachers[name] if config.teachers else config.teacher
        for key, value in identify(teacher).items():
            OmegaConf.update(node, key, value, force_add=True)
        if teacher.mode == "external" or teacher.store_mode == "replay":
            continue
        settings = with_absolute_paths(teacher)
        # Beside the trainer's own. An actor with none sees what its node has, which is what sharing takes.
        gpus = settings.tp * settings.dp if settings.device == "cuda" and not settings.share_device else 0
        log = Path(config.run_dir) / ("teacher.log" if not config.teachers else f"teacher-{name}.log")
        actor = as_actor(ManagedTeacher).options(num_gpus=gpus).remote(settings, str(log))
        url = ray.get(actor.start.remote())
        ready[actor.wait_ready.remote()] = (name, actor)
        OmegaConf.update(node, "mode", "external", force_add=True)
        OmegaConf.update(node, "urls", [url], force_add=True)
    return ready


def train(config: DictConfig, started: float) -> None:
    """Run the whole job. Every process it started is gone when it returns or raises."""
    from verl_ext.trainer.runner import Runner

    run_dir = Path(config.run_dir)
    ray_init = mapping_of(config.ray_kwargs.ray_init)
    with RunConsole(run_dir, started) as console, ray_session(ray_init, run_dir / "logs"):
        console.stage("Ray is up")
        mark_stage(run_dir, "Ray is up")
        teachers = start_teachers(config)
        if any(teacher.share_device for teacher in teachers_of(config).values()):
            ray.get(list(teachers))  # its memory is taken before trainer and vLLM measure what is free
        training = as_actor(Runner).remote().run.remote(config)
        pending = [*teachers, training]
        while training in pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=0.5)
            console.update()
            if console.seconds_since_progress() > config.stall_timeout_s:
                raise TimeoutError(f"no step ended for stall_timeout_s={config.stall_timeout_s} seconds")
            for reference in done:
                answer = ray.get(reference)
                if reference != training:
                    mark_stage(run_dir, "teacher answers")
                    console.stage(f"the teacher {teachers[reference][0]} answers log-prob requests at {answer}")
        console.update()
    if config.actor_rollout_ref.model.lora_rank and config.trainer.save_freq > 0:
        export_what_is_missing(config)
    if (run_dir / "metrics.jsonl").is_file():
        write_cards(run_dir)  # with the last step, which the last checkpoint's card does not know yet
    console.finish()


def export_what_is_missing(config: DictConfig) -> None:
    """The merged student of a finished LoRA run that was stopped while it was exported."""
    from verl_ext.export import link_merged

    checkpoints, run_dir = Path(config.trainer.default_local_dir), Path(config.run_dir)
    latest = checkpoints / "latest_checkpointed_iteration.txt"
    if latest.is_file():
        actor = checkpoints / f"global_step_{latest.read_text().strip()}" / "actor"
        if (run_dir / "student").resolve().parent != actor.resolve():
            link_merged(actor, config.student.path, run_dir)


@hydra.main(version_base=None, config_path="../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    started = time.perf_counter()
    config.run_dir = str(Path(config.run_dir).resolve())
    try:
        planned = check(config)
        preflight.save_resolved_config(OmegaConf.to_yaml(config, resolve=True), config.run_dir)
        mark_stage(config.run_dir, "settings are checked")
        if config.get("hardware") is not None:
            print(planned, flush=True)
        train(config, started)
    except (RayError, RuntimeError, TimeoutError) as error:  # before ValueError: Ray's errors are also their cause's
        print(error, file=sys.stderr)
        sys.exit(
            f"error: the run failed: {str(error).strip().splitlines()[-1]}\n"
            f"every process' output is in {config.run_dir}/logs; the same command resumes from the last checkpoint"
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted; the same command resumes from the last checkpoint in {config.run_dir}")


if __name__ == "__main__":
    prepare_training_configs()
    main()
