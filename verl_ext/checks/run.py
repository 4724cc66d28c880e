"""What training refuses before anything is started."""

from typing import Any

from omegaconf import DictConfig

from verl_ext.checks.inputs import (
    check_batch,
    check_external_teacher,
    check_interpreter,
    check_prompt_lengths,
    check_routing,
    check_same_tokenizer,
    check_sampling,
)
from verl_ext.checks.memory import check_memory, check_plan
from verl_ext.data.rows import check_rows
from verl_ext.run.models import check_model, load_tokenizer
from verl_ext.run.settings import check_given, mapping_of
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.config import check_method


def check(config: DictConfig) -> str:
    """Refuse a run that cannot work; else say how it fits in memory. Raises ValueError naming the key and the fix."""
    check_given(config, "student.path", "data.train_files", "data.val_files")
    check_method(config)
    teachers = teachers_of(config)
    planned = check_plan(config)
    check_sampling(config.actor_rollout_ref.rollout)
    check_model("student.path", config.student.path)
    rows = check_rows("data.train_files", config.data.train_files)
    check_rows("data.val_files", config.data.val_files)
    check_batch(config.data.train_batch_size, len(rows))
    check_routing(rows, teachers)
    if config.trainer.device == "cpu":
        check_memory(config.student.path)
    student_tokenizer = load_tokenizer(config.student.path)
    for teacher in teachers.values():
        check_teacher(teacher, config.student.path, student_tokenizer)
    context_lengths = [teacher.context_length for teacher in teachers.values() if teacher.context_length is not None]
    check_prompt_lengths(
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
        check_model("teacher.model_path", teacher.model_path)
        if teacher.store_mode != "replay":
            teacher.check_exposure()
            check_interpreter("teacher.python", teacher.python)
    elif teacher.store_mode != "replay":
        check_external_teacher(teacher, vocab_size=2)
    if teacher.model_path and teacher.model_path != student_path:
        check_same_tokenizer(student_tokenizer, load_tokenizer(teacher.model_path))
