"""Settings, rows and models: are they there, and do they fit each other? No engine is needed.

Each function is a check of `verl_ext.checks.registry`. It raises ValueError naming the configuration key and the fix;
else it returns what it has seen. None imports torch or verl.
"""

import asyncio
import shutil
from pathlib import Path

from verl_ext.checks.context import Context
from verl_ext.run import models as model_files
from verl_ext.run.files import check_writable
from verl_ext.run.lock import check_unlocked
from verl_ext.run.models import check_model
from verl_ext.run.resume import check_ranks, check_resume, resume_of
from verl_ext.run.settings import check_given, settings_of
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import BASE, DEFAULT_ENGINE, TeacherConfig
from verl_ext.teacher.server.process import check_quantized_weights
from verl_ext.teacher.store.fingerprint import version_of_engine
from verl_ext.teacher.teachers import teacher_of_row
from verl_ext.teacher.types import TeacherError
from verl_ext.trainer.config import check_method
from verl_ext.trainer.pipeline_config import check_pipeline
from verl_ext.trainer.replay.config import check_replay
from verl_ext.trainer.report_config import ReportConfig


def given(context: Context) -> str:
    """What has no default has a value."""
    check_given(context.config, *context.required)
    return ", ".join(context.required)


def method(context: Context) -> str:
    """Method and verl's settings beside it fit each other."""
    return f"loss {check_method(context.config).loss}"


def pipeline(context: Context) -> str:
    """The pipeline, the method and verl's settings beside it fit each other."""
    checked = check_pipeline(context.config, check_method(context.config))
    return f"{checked.mode}, samples at most {checked.ahead} weight versions old"


def replay(context: Context) -> str:
    """Samples of earlier steps can be trained on again as the method and the pipeline stand."""
    method = check_method(context.config)
    found = check_replay(context.config, method, check_pipeline(context.config, method))
    return f"{found.prompts(context.config.data.train_batch_size)} prompts a step at most" if found.share else "off"


def report(context: Context) -> str:
    """What is kept of a run to be looked at is in range."""
    settings, trainer = settings_of(context.config.report, ReportConfig), context.config.trainer
    if not settings.keep_samples:
        return "no answers are kept"
    if trainer.test_freq < 0 and not trainer.val_before_train:
        return "no answers are kept: trainer.test_freq=-1 makes no validation"
    return f"answers to {settings.keep_samples} held-out rows are kept at every validation"


def teacher_settings(context: Context) -> str:
    """Every teacher's settings are in range."""
    return ", ".join(f"{name} {teacher.mode}" for name, teacher in context.teachers.items())


def sampling(context: Context) -> str:
    """The sampler must draw from the very distribution that its log-probs describe."""
    rollout = context.config.actor_rollout_ref.rollout
    for key, wanted in (("temperature", 1.0), ("top_p", 1.0), ("top_k", -1)):
        if rollout[key] != wanted:
            raise ValueError(
                f"actor_rollout_ref.rollout.{key}={rollout[key]}: the reverse KL holds only for samples drawn from "
                f"the model's own distribution; set it to {wanted}"
            )
    return "temperature 1, top_p 1, top_k -1"


def models(context: Context) -> str:
    """Every model is a folder that holds one, or has a hub name."""
    for key, path in context.models.items():
        check_model(key, path, offline=context.offline)
    return ", ".join(dict.fromkeys(context.models.values()))


def rows(context: Context) -> str:
    """The rows can be read and have what is needed."""
    return f"{len(context.rows)} rows"


def run_folder(context: Context) -> str:
    """`run_dir` can be written, no run is at work in it, and one that was made what decides this one's student."""
    check_unlocked(check_writable("run_dir", context.config.run_dir, folder=True))
    return check_resume(context.config)


def checkpoint(context: Context) -> str:
    """The checkpoint that the run goes on from is what was written, by as many ranks as will read it."""
    trainer = context.config.trainer
    if (resume := resume_of(trainer)) is None:
        return "none to go on from"
    check_ranks(resume.folder / "actor", trainer.nnodes * trainer.n_gpus_per_node, "trainer.nnodes x n_gpus_per_node")
    return f"{resume.folder} is whole"


def heldout(context: Context) -> str:
    """So have the held-out ones."""
    return f"{len(context.heldout)} rows"


def batch(context: Context) -> str:
    """One step needs a full batch of prompts: verl drops the last, smaller one."""
    data = context.config.data
    size, count, limit = data.train_batch_size, len(context.rows), data.train_max_samples
    if size > count:
        raise ValueError(
            f"data.train_batch_size={size} is larger than data.train_files: {count} rows; lower it, or give more rows"
        )
    if 0 < limit < size:
        raise ValueError(f"data.train_max_samples={limit} leaves no batch of data.train_batch_size={size}; raise it")
    return f"{size} prompts a step, {count // size} steps an epoch"


def routing(context: Context) -> str:
    """Every row names one of the run's teachers, where there are several."""
    for number, row in enumerate(context.rows):
        try:
            teacher_of_row(row, context.teachers)
        except ValueError as error:
            raise ValueError(f"data.train_files row {number}: {error}") from None
    return f"{len(context.teachers)} to score the rows"


def teacher_model(context: Context, name: str) -> str:
    """A teacher's files; a server that runs need not have its files here."""
    path = context.teachers[name].model_path
    if path is None:
        return "not here: the server has it"
    check_model("teacher.model_path", path, offline=context.offline)
    return path


def _is_started(teacher: TeacherConfig) -> bool:
    """A server of ours will run for it."""
    return teacher.mode == "managed" and teacher.store_mode != "replay"


def exposure(context: Context, name: str) -> str:
    """A managed server that other machines reach asks them for a key."""
    if not _is_started(teacher := context.teachers[name]):
        return "no server is started"
    teacher.check_exposure()
    return f"listens on {teacher.host}"


def interpreter(context: Context, name: str) -> str:
    """The teacher environment's interpreter exists, and has an engine that is not the default's."""
    if not _is_started(teacher := context.teachers[name]):
        return "no server is started"
    if shutil.which(Path(teacher.python).expanduser().absolute()) is None:
        raise ValueError(
            f"teacher.python={teacher.python}: no such interpreter; `make setup` (GPUs: `make setup-gpu`) creates it"
        )
    if teacher.engine == DEFAULT_ENGINE:  # whose interpreter is the default too
        return teacher.python
    return f"{teacher.python}, {teacher.engine} {version_of_engine(teacher.python, teacher.engine)}"


def quantized_weights(context: Context, name: str) -> str:
    """A checkpoint of quantised weights runs where it is asked to."""
    if not _is_started(teacher := context.teachers[name]):
        return "no server is started"
    check_quantized_weights(teacher)
    return f"{teacher.quantization or teacher.dtype} on {teacher.device}"


def server(context: Context, name: str) -> str:
    """Every external server answers a real log-prob request now, and all alike."""
    teacher = context.teachers[name]
    if teacher.mode == BASE:
        return "none: the student's base scores in the sampler"
    if teacher.mode == "managed" or teacher.store_mode == "replay":
        return "started by the run" if _is_started(teacher) else "not asked: the store answers"

    async def probe() -> None:
        async with TeacherPool(teacher, vocab_size=2) as pool:
            await pool.probe()

    try:
        asyncio.run(probe())
    except TeacherError as error:
        raise ValueError(
            f"teacher.urls: a server does not score: {error}; start it, or set teacher.mode=managed"
        ) from None
    return f"{len(teacher.urls)} answer log-prob requests"


def student_tokenizer(context: Context) -> str:
    """The tokenizer of the student, or of the model that answers, can be read and has a chat template."""
    key, path = context.student
    if not context.student_tokenizer.chat_template:
        raise ValueError(f"{key}={path} has no chat template; add chat_template.jinja to its folder")
    return f"{len(context.student_tokenizer)} tokens, with a chat template"


def context_length(context: Context) -> str:
    """A prompt with its answer fits the student's own context; vLLM would cut answers there, or not start."""
    config, (key, path) = context.config, context.student
    limit = model_files.context_length(key, path)
    if limit is None:
        return f"{path} says none"
    longest = config.data.max_prompt_length + config.data.max_response_length
    for name, tokens in (
        ("data.max_prompt_length + data.max_response_length", longest),
        ("actor_rollout_ref.rollout.max_model_len", config.actor_rollout_ref.rollout.max_model_len),
    ):
        if tokens is not None and tokens > limit:
            raise ValueError(f"{name}={tokens} tokens, and {key}={path} takes {limit}; lower it")
    return f"{longest} of {limit} tokens"


def teacher_tokenizer(context: Context, name: str) -> str:
    """The teacher's tokenizer can be read."""
    return f"{len(context.teacher_tokenizer(name))} tokens"


def prompt_lengths(context: Context) -> str:
    """Every student's prompt, rendered, fits the limit that was set."""
    limit = context.config.data.max_prompt_length
    for number, prompt in enumerate(context.prompt_tokens["prompt"]):
        if prompt.length > limit:
            raise ValueError(f"row {number}: prompt has {prompt.length} tokens; raise data.max_prompt_length={limit}")
    longest = {column: max(prompt.length for prompt in prompts) for column, prompts in context.prompt_tokens.items()}
    return f"the longest: {longest['prompt']} tokens for the student, {longest['teacher_messages']} for the teacher"
