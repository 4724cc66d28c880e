"""The checks that need no engine: files, settings, tokens and templates."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_ext.checks.finding import OK, Finding, checked, refused
from verl_ext.checks.inputs import (
    check_batch,
    check_external_teacher,
    check_interpreter,
    check_prompt_lengths,
    check_routing,
    check_sampling,
)
from verl_ext.checks.memory import check_memory, check_plan
from verl_ext.checks.tokens import (
    COLUMNS,
    check_rendered,
    check_templates,
    check_think_tokens,
    check_tokenizers,
    check_vocabulary,
    render_rows,
)
from verl_ext.data.rows import check_rows
from verl_ext.run.file_hashes import hash_of_model
from verl_ext.run.models import check_model, load_tokenizer
from verl_ext.run.settings import mapping_of
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import teacher_of_row, vocab_size_of

Rows = list[dict[str, Any]]


def read_inputs(config: DictConfig, teachers: Mapping[str, TeacherConfig]) -> tuple[Rows, Finding]:
    """The training rows, once models, data and external servers are known to be there.

    Raises:
        ValueError: naming the key and the fix.
    """
    check_model("student.path", config.student.path)
    rows = check_rows("data.train_files", config.data.train_files)
    heldout = check_rows("data.val_files", config.data.val_files)
    check_batch(config.data.train_batch_size, len(rows))
    check_routing(rows, teachers)
    for teacher in teachers.values():
        assert teacher.model_path is not None  # student.path is its default
        check_model("teacher.model_path", teacher.model_path)
        if teacher.mode == "managed":
            check_interpreter("teacher.python", teacher.python)
        else:
            check_external_teacher(teacher, vocab_size=2)
    seen = f"{len(rows)} rows to train on, {len(heldout)} held out; models, data and servers are there"
    return rows, Finding("inputs", "ok", seen, numbers={"rows": len(rows), "heldout": len(heldout)})


def settings_findings(
    config: DictConfig, rows: Rows, teachers: Mapping[str, TeacherConfig], student: Any
) -> list[Finding]:
    """What concerns no single teacher. `student` is the student's tokenizer."""
    sampling = "temperature 1, top_p 1, top_k -1"
    findings = [checked("sampling", sampling, check_sampling, config.actor_rollout_ref.rollout)]
    contexts = [teacher.context_length for teacher in teachers.values() if teacher.context_length is not None]
    limits = {
        "max_prompt_length": config.data.max_prompt_length,
        "max_response_length": config.data.max_response_length,
        "teacher_context_length": min(contexts, default=None),
        "template_kwargs": mapping_of(config.data.apply_chat_template_kwargs),
    }
    fits = f"every prompt is within {limits['max_prompt_length']} tokens, with its answer within the teacher's context"
    findings.append(checked("prompt lengths", fits, check_prompt_lengths, rows, student, **limits))
    findings.append(plan_finding(config))
    if config.trainer.device == "cpu":
        findings.append(checked("free memory", "enough for a run", check_memory, config.student.path))
    return findings


def plan_finding(config: DictConfig) -> Finding:
    """Whether the machine that `hardware=` describes holds the run (`recipe.plan memory` shows the whole plan)."""
    try:
        return Finding("memory plan", OK, check_plan(config))
    except ValueError as error:
        return refused("memory plan", error)


def token_findings(
    config: DictConfig, rows: Rows, name: str, teachers: Mapping[str, TeacherConfig], student: Any, shown_rows: int
) -> list[Finding]:
    """What one teacher and the student make of the same tokens; templates are compared on `shown_rows` rows."""
    teacher, student_path = teachers[name], config.student.path
    assert teacher.model_path is not None
    kwargs = mapping_of(config.data.apply_chat_template_kwargs)
    other = load_tokenizer(teacher.model_path)
    own_rows = [row for row in rows if teacher_of_row(row, teachers) == name]
    findings = [
        check_tokenizers(student, other),
        check_templates(student, other, own_rows[:shown_rows], kwargs),
        check_think_tokens(student, other),
    ]
    if not student.chat_template or not own_rows:
        return findings
    student_ids, teacher_ids = (render_rows(student, own_rows, column, kwargs) for column in COLUMNS)
    findings.append(
        check_vocabulary(
            student_tokens=len(student),
            teacher_tokens=len(other),
            student_size=vocab_size_of(student_path, trust_remote_code=False),
            teacher_size=vocab_size_of(teacher.model_path, trust_remote_code=teacher.trust_remote_code),
            greatest_id=max(chain.from_iterable(chain(student_ids, teacher_ids))),
        )
    )
    shown = [student.decode(ids[0], skip_special_tokens=False) for ids in (student_ids, teacher_ids)]
    equal = same_weights(student_path, teacher.model_path)
    findings.append(check_rendered(shown[0], shown[1], same_weights=equal))
    return findings


def same_weights(student_path: str, teacher_path: str) -> bool:
    """Whether two models are one: the same name, or folders whose files are equal."""
    if student_path == teacher_path:
        return True
    folders: Sequence[Path] = [Path(path).expanduser() for path in (student_path, teacher_path)]
    if not all(folder.is_dir() for folder in folders):
        return False
    return hash_of_model(folders[0]) == hash_of_model(folders[1])
