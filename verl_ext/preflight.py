"""Refuse a run that cannot work, in one line, before any engine starts.

Each check raises ValueError naming the configuration key and the fix. None imports torch or verl.
"""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.pool import TeacherPool
from verl_ext.teacher.scorer import TeacherError
from verl_ext.teacher.service import teacher_of_row

REQUIRED_COLUMNS = ("prompt", "teacher_messages", "data_source", "reward_model")
# Resident memory of a run on the CPU with a model of negligible size: Ray, trainer, vLLM, SGLang (measured: see
# docs/results/cpu-demo.md).
CPU_BASE_GIB = 9.0

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


def check_model(key: str, path: str) -> None:
    """`path` is a model folder, or looks like a hub name (`owner/name`)."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{key}={path} is no model: the folder has no config.json")
        if not list(folder.glob("*.safetensors")) and not list(folder.glob("*.bin")):
            raise ValueError(f"{key}={path} is no model: the folder has no weights (*.safetensors)")
    elif path.count("/") != 1 or path.startswith((".", "/", "outputs/")):
        raise ValueError(f"{key}={path}: no such folder; `make demo` builds a tiny model, or name one from the hub")


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


def read_table(key: str, path: str, verb: str) -> pa.Table:
    """A parquet file that `python -m recipe.<verb>` makes. ValueError naming `key` if it is missing or none."""
    if not Path(path).is_file():
        raise ValueError(f"{key}={path}: no such file; make it with `python -m recipe.{verb}`")
    try:
        return pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{key}={path} is no parquet file ({error}); see data/README.md") from None


def check_rows(key: str, path: str) -> list[dict[str, Any]]:
    """Read a parquet of prompts; return its rows.

    Raises:
        ValueError: if the file is missing, is no parquet, lacks a column or holds an empty prompt.
    """
    table = read_table(key, path, "create_data")
    missing = [column for column in REQUIRED_COLUMNS if column not in table.column_names]
    if missing:
        raise ValueError(f"{key}={path} has no column {', '.join(missing)}; see data/README.md for the columns")
    rows = table.to_pylist()
    if not rows:
        raise ValueError(f"{key}={path} holds no rows")
    for number, row in enumerate(rows):
        for column in ("prompt", "teacher_messages"):
            messages = row[column]
            if not messages or not all((message.get("content") or "").strip() for message in messages):
                raise ValueError(f"{key}={path} row {number}: {column} is empty")
    return rows


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


def load_tokenizer(path: str) -> Any:
    """The fast tokenizer of a model folder or hub name, with its chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(path)


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
            ids = tokenizer.apply_chat_template(
                row[column], add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
            )
            room = max_response_length + KEPT_BACK if column == "teacher_messages" else 0
            if len(ids) + room > limit:
                raise ValueError(
                    f"row {number}: {column} has {len(ids)} tokens (+{room} of response); raise {key}={limit}"
                )


def check_memory(model_path: str, *, needed_gib: float | None = None) -> None:
    """Enough free memory for a CPU run: the engines' own, and ten copies of the weights in fp32.

    The copies: trainer weights, gradients, two Adam moments, export, vLLM, SGLang, the transfer buckets.
    """
    weights = sum(file.stat().st_size for file in Path(model_path).glob("*.safetensors"))
    needed = needed_gib if needed_gib is not None else CPU_BASE_GIB + 10 * weights / 2**30
    free = psutil.virtual_memory().available / 2**30
    if free < needed:
        raise ValueError(
            f"not enough memory: this run needs about {needed:.1f} GiB, {free:.1f} GiB are free; "
            "stop other programs or take a smaller student.path"
        )


def save_resolved_config(resolved_yaml: str, run_dir: str) -> Path:
    """Write the resolved configuration into the run directory; return the file."""
    file = Path(run_dir) / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(resolved_yaml)
    return file


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    part.replace(path)
