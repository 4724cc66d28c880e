"""The checks that need the engines: the student samples, then each teacher scores."""

import asyncio
import dataclasses
import inspect
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import numpy as np

from verl_ext.checks.agreement import (
    ReverseKL,
    judge_noise,
    judge_precision,
    judge_probe,
    judge_self_kl,
    precision_gap,
    reverse_kl,
)
from verl_ext.checks.check import Check
from verl_ext.checks.config import DoctorConfig, Tolerance
from verl_ext.checks.context import COLUMNS, Context
from verl_ext.checks.finding import FAIL, OK, WARN, Finding, refused
from verl_ext.checks.machine import measure_memory
from verl_ext.checks.record import check_record
from verl_ext.checks.reference import Rollout, sample_with_transformers, transformers_logprobs, weights_bytes
from verl_ext.checks.trials import cached_and_uncached, measure_speed, repeated, score_all, speed_finding
from verl_ext.run.file_hashes import same_weights
from verl_ext.sampling.types import EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.server.supervisor import serving_teacher
from verl_ext.teacher.teachers import teacher_of_row, vocab_size_of
from verl_ext.teacher.types import Scorer, ScoreRequest, TeacherError


@dataclass(frozen=True)
class Case:
    """One teacher, and what it is asked."""

    settings: DoctorConfig
    teacher: TeacherConfig
    student_path: str
    rollouts: Sequence[Rollout]
    """The student's samples of this teacher's rows, at least one."""
    samples_a_step: int
    """Samples that a training step scores."""
    rollout_dtype: str
    """The sampler's, as in `actor_rollout_ref.rollout.dtype`."""

    @property
    def tolerance(self) -> Tolerance:
        return self.settings.tolerance(self.teacher)

    @property
    def probes(self) -> list[ScoreRequest]:
        return [rollout.probe_request() for rollout in self.rollouts]


def sample_student(context: Context, settings: DoctorConfig) -> list[Rollout]:
    """One answer to each of the first rows, drawn at temperature 1."""
    config, picked = context.config, context.rows[: settings.rows]
    prompts, teacher_prompts = ([context.render(row, column) for row in picked] for column in COLUMNS)
    path, max_tokens = context.student[1], min(settings.response_tokens, config.data.max_response_length)
    rollout = config.actor_rollout_ref.rollout
    if settings.sampler == "vllm":
        requests = [Request(number, list(row["prompt"])) for number, row in enumerate(picked)]
        sampling = SamplingConfig(temperature=1.0, max_tokens=max_tokens, stop=[], seed=settings.seed)
        tp, memory = rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization
        engine = EngineConfig(rollout.dtype, tp, memory, enforce_eager=True)
        with VllmSampler(path, sampling, engine, requests, dict(context.template_kwargs)) as sampler:
            samples = sampler.sample(requests)
        sampled = [(sample.ids, np.array(sample.logprobs, np.float32)) for sample in samples]
    else:
        device = config.trainer.device
        sampled = sample_with_transformers(
            path, prompts, max_tokens=max_tokens, dtype=rollout.dtype, device=device, seed=settings.seed
        )
    names = [teacher_of_row(row, context.teachers) for row in picked]
    return [
        Rollout(prompt, teacher_prompt, ids, logprobs, name)
        for prompt, teacher_prompt, (ids, logprobs), name in zip(prompts, teacher_prompts, sampled, names, strict=True)
    ]


@contextmanager
def serving(teacher: TeacherConfig) -> Iterator[list[str]]:
    """As `serving_teacher`, and a managed one leaves no log."""
    with (
        tempfile.TemporaryDirectory(prefix="doctor-") as folder,
        serving_teacher(teacher, Path(folder) / "teacher.log") as urls,
    ):
        yield urls


@dataclass(frozen=True)
class Asked:
    """A teacher that answers, and what a check may ask it."""

    case: Case
    urls: Sequence[str]
    """Of its servers."""
    pool: Scorer
    kept: dict[str, list[np.ndarray]]
    """Its log-probs of the rollouts, from one check to a later one: by `own_prompt` and `teacher_prompt`."""

    @property
    def teacher(self) -> TeacherConfig:
        return self.case.teacher

    @property
    def teacher_path(self) -> str:
        assert self.teacher.model_path is not None  # student.path is its default
        return self.teacher.model_path

    @property
    def vocab_size(self) -> int:
        return vocab_size_of(self.teacher_path, trust_remote_code=self.teacher.trust_remote_code)

    def make_pool(self) -> TeacherPool:
        return _impatient_pool(self.teacher, self.vocab_size, self.urls)


def teacher_findings(case: Case, checks: Sequence[Check]) -> list[Finding]:
    """What the checks that need engines find on one teacher: coroutines while it runs, the others afterwards."""
    running = [check for check in checks if inspect.iscoroutinefunction(check.look)]
    findings: list[Finding] = []
    try:
        with serving(case.teacher) as urls:
            findings, asked = asyncio.run(_ask(case, urls, running))
        for check in checks:
            if check not in running and (finding := check.look(asked)) is not None:
                findings.append(dataclasses.replace(finding, name=check.name))
    except (RuntimeError, TimeoutError) as error:
        lines = str(error).strip().splitlines()
        fix = "read the end of the teacher's log in doctor.json"
        findings.append(Finding(FAIL, lines[-1], fix, {"message": str(error)}, name="teacher"))
    except ValueError as error:
        findings.append(dataclasses.replace(refused(error), name="teacher"))
    return findings


async def _ask(case: Case, urls: Sequence[str], checks: Sequence[Check]) -> tuple[list[Finding], Asked]:
    """The findings on a teacher that runs at `urls`, and what was asked of it."""
    assert case.teacher.model_path is not None
    vocab_size = vocab_size_of(case.teacher.model_path, trust_remote_code=case.teacher.trust_remote_code)
    async with _impatient_pool(case.teacher, vocab_size, urls) as pool:
        asked = Asked(case, urls, pool, {})
        return [dataclasses.replace(await _attempt(check, asked), name=check.name) for check in checks], asked


async def _attempt(check: Check, asked: Asked) -> Finding:
    try:
        return await check.look(asked)
    except TeacherError as error:
        return Finding(FAIL, str(error), "make the teacher answer log-prob requests; docs/teacher.md")
    except ValueError as error:
        return refused(error)


def _impatient_pool(teacher: TeacherConfig, vocab_size: int, urls: Sequence[str]) -> TeacherPool:
    """A pool that gives up after one more try: here an error is an answer."""
    patience = dataclasses.replace(teacher, max_retries=1, sample_timeout_s=2 * teacher.request_timeout_s)
    return TeacherPool(patience, vocab_size, urls)


async def against_transformers(asked: Asked) -> Finding:
    """Log-probs of the same tokens by transformers on the teacher's own weights."""
    case, teacher = asked.case, asked.teacher
    folder, limit = Path(asked.teacher_path).expanduser(), case.settings.transformers_max_bytes
    size = weights_bytes(folder)
    if not 0 < size <= limit:
        seen = f"skipped: {size} bytes of local weights" if size else "skipped: the weights are not in a local folder"
        fix = f"raise doctor.transformers_max_bytes={limit}" if size else "give a folder as teacher.model_path"
        return Finding(WARN, seen, fix, {"bytes": size})
    found = await score_all(asked.pool, case.probes)
    dtype = "bfloat16" if teacher.quantization else teacher.dtype
    expected = transformers_logprobs(str(folder), case.probes, dtype=dtype, device=teacher.device)
    return judge_probe(found, expected, case.tolerance)


async def repeated_scoring(asked: Asked) -> Finding:
    """The same requests in another order and other batches."""
    case = asked.case
    passes = await repeated(asked.pool, case.probes, case.settings.repeats, case.settings.seed)
    fix = "the server's answer depends on what else is in the batch: look at its back ends and its kernel options"
    return judge_noise(passes, case.tolerance, fix)


async def prefix_cache(asked: Asked) -> Finding:
    """The same requests with a flushed and with a primed cache."""
    case, engine = asked.case, engine_of(asked.teacher.engine)
    if engine.flush_path is None:
        return Finding(OK, f"{engine.title} reads none while it scores; what that costs: teacher engine")
    flush_urls = [urljoin(url, engine.flush_path) for url in asked.urls]
    trial = await cached_and_uncached(asked.make_pool, case.probes, flush_urls, asked.teacher.api_key_env)
    fix = "cached prompts give other log-probs: teacher.extra_args=[--disable-radix-cache], and report it"
    finding = judge_noise([trial.uncached, trial.cached], case.tolerance, fix)
    shares = {"uncached_share": trial.uncached_share, "cached_share": trial.cached_share}
    seen = f"{trial.cached_share:.0%} of the tokens cached against {trial.uncached_share:.0%}: {finding.seen}"
    return dataclasses.replace(finding, seen=seen, numbers={**finding.numbers, **shares})


async def self_kl(asked: Asked) -> Finding:
    """Reverse KL of the rollouts; under the student's own prompt 0 where the weights are equal."""
    case = asked.case
    rollout_logprobs = [rollout.rollout_logprobs for rollout in case.rollouts]

    async def kl(own_prompt: bool) -> ReverseKL:
        logprobs = await score_all(asked.pool, [rollout.request(own_prompt=own_prompt) for rollout in case.rollouts])
        asked.kept["own_prompt" if own_prompt else "teacher_prompt"] = logprobs
        return reverse_kl(rollout_logprobs, logprobs)

    own = await kl(True) if same_weights(case.student_path, asked.teacher_path) else None
    return judge_self_kl(own, await kl(False), case.settings.tolerance(asked.teacher, case.rollout_dtype))


async def fingerprint(asked: Asked) -> Finding:
    """It is the teacher that was recorded."""
    tolerance = min(asked.case.tolerance.max, asked.teacher.probe_tolerance_nats)
    record = asked.case.settings.record
    return await check_record(record, asked.teacher, asked.urls, asked.pool, asked.vocab_size, tolerance)


async def speed(asked: Asked) -> Finding:
    """For information: nothing is too slow to be right."""
    requests = [rollout.request(own_prompt=False) for rollout in asked.case.rollouts]
    tokens = [len(request.prompt_ids) + len(request.response_ids) for request in requests]
    measured = await measure_speed(asked.pool, requests)
    return speed_finding(measured, asked.case.samples_a_step, sum(tokens) / len(tokens))


async def memory_now(asked: Asked) -> Finding:
    """What is left beside the running teacher."""
    del asked
    return measure_memory()


def precision(asked: Asked) -> Finding | None:
    """The same samples scored by a server at another dtype, which runs when the teacher has stopped; None: not asked.

    Raises:
        ValueError, RuntimeError, TimeoutError: if that server does not start.
    """
    case = asked.case
    dtype, lower = case.settings.reference(asked.teacher), asked.kept.get("teacher_prompt")
    if dtype is None or lower is None:
        return None
    teacher = dataclasses.replace(asked.teacher, dtype=dtype, quantization=None, mode="managed", urls=[], port=0)
    if case.settings.reference_url:
        teacher = dataclasses.replace(teacher, mode="external", urls=[case.settings.reference_url])
    requests = [rollout.request(own_prompt=False) for rollout in case.rollouts]

    async def score(urls: Sequence[str]) -> list[np.ndarray]:
        async with _impatient_pool(teacher, asked.vocab_size, urls) as pool:
            return await score_all(pool, requests)

    try:
        with serving(teacher) as urls:
            higher = asyncio.run(score(urls))
    except TeacherError as error:
        fix = "make the reference server answer: doctor.reference_url"
        return Finding(FAIL, str(error), fix)
    gap = precision_gap([rollout.rollout_logprobs for rollout in case.rollouts], lower, higher)
    pair = f"{asked.teacher.quantization or asked.teacher.dtype} against {dtype}"
    return judge_precision(gap, pair, case.settings.max_sign_changes)
