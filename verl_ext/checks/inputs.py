"""Refuse a run that cannot work, in one line, before any engine starts.

Each check raises ValueError naming the configuration key and the fix. None imports torch or verl.
"""

import asyncio
import shutil
from collections.abc import Mapping
from typing import Any

from verl_ext.run.models import render_chat
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import teacher_of_row
from verl_ext.teacher.types import TeacherError

KEPT_BACK = 7
"""Tokens of its context length that SGLang grants no request (below `max_req_input_len`, managers/tp_worker.py)."""


def check_sampling(rollout: Any) -> None:
    """The sampler must draw from the very distribution that its log-probs describe."""
    for key, wanted in (("temperature", 1.0), ("top_p", 1.0), ("top_k", -1)):
        if rollout[key] != wanted:
            raise ValueError(
                f"actor_rollout_ref.rollout.{key}={rollout[key]}: the reverse KL holds only for samples drawn from "
                f"the model's own distribution; set it to {wanted}"
            )


def check_interpreter(key: str, python: str) -> None:
    """The teacher environment's interpreter exists."""
    if shutil.which(python) is None:
        raise ValueError(f"{key}={python}: no such interpreter; `make setup` (GPUs: `make setup-gpu`) creates it")


def check_external_teacher(settings: TeacherConfig, vocab_size: int) -> list[float]:
    """Every external server answers a real log-prob request now, and all alike; the probe's log-probs, nats."""

    async def probe() -> list[float]:
        async with TeacherPool(settings, vocab_size) as pool:
            return await pool.probe()

    try:
        return asyncio.run(probe())
    except TeacherError as error:
        raise ValueError(f"teacher.urls: a server does not score: {error}") from None


def check_routing(rows: list[dict[str, Any]], teachers: Mapping[str, TeacherConfig]) -> None:
    """Every row names one of the run's teachers, where there are several."""
    for number, row in enumerate(rows):
        try:
            teacher_of_row(row, teachers)
        except ValueError as error:
            raise ValueError(f"data.train_files row {number}: {error}") from None


def check_batch(train_batch_size: int, rows: int) -> None:
    """One step needs a full batch of prompts: verl drops the last, smaller one."""
    if train_batch_size > rows:
        raise ValueError(f"data.train_batch_size={train_batch_size} is larger than data.train_files: {rows} rows")


def check_same_tokenizer(student: Any, teacher: Any) -> None:
    """Teacher and student must mean the same by every token id, or the reverse KL compares different events."""
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    if student_vocab != teacher_vocab:
        differing = [
            token
            for token in student_vocab.keys() | teacher_vocab.keys()
            if student_vocab.get(token) != teacher_vocab.get(token)
        ]
        token = sorted(differing)[0]
        raise ValueError(
            f"student.path and teacher.model_path have different tokenizers: {len(differing)} tokens differ, "
            f"first {token!r} (student id {student_vocab.get(token)}, teacher id {teacher_vocab.get(token)}); "
            "the teacher must share the student's vocabulary"
        )
    if student.special_tokens_map != teacher.special_tokens_map:
        raise ValueError(
            f"student.path and teacher.model_path have different special tokens: {student.special_tokens_map} against "
            f"{teacher.special_tokens_map}; make both tokenizer_config.json agree"
        )


def check_prompt_lengths(
    rows: list[dict[str, Any]],
    tokenizer: Any,
    *,
    max_prompt_length: int,
    max_response_length: int,
    teacher_context_length: int | None,
    template_kwargs: dict[str, Any],
) -> None:
    """Every prompt, rendered, fits the student's limit; with a full response it fits the teacher's context."""
    for number, row in enumerate(rows):
        for column, key, limit in (
            ("prompt", "data.max_prompt_length", max_prompt_length),
            ("teacher_messages", "teacher.context_length", teacher_context_length),
        ):
            if limit is None:
                continue
            ids = render_chat(tokenizer, row[column], template_kwargs)
            room = max_response_length + KEPT_BACK if column == "teacher_messages" else 0
            if len(ids) + room > limit:
                raise ValueError(
                    f"row {number}: {column} has {len(ids)} tokens (+{room} of response); raise {key}={limit}"
                )
