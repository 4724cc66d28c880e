"""The checks that need the engines: the student samples, then each teacher scores."""

import asyncio
import dataclasses
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_ext.checks.agreement import (
    ReverseKL,
    judge_noise,
    judge_precision,
    judge_probe,
    judge_self_kl,
    precision_gap,
    reverse_kl,
)
from verl_ext.checks.config import DoctorConfig, Tolerance
from verl_ext.checks.finding import FAIL, WARN, Finding, refused
from verl_ext.checks.machine import measure_memory
from verl_ext.checks.record import check_record
from verl_ext.checks.reference import Rollout, sample_with_transformers, transformers_logprobs, weights_bytes
from verl_ext.checks.settings import same_weights
from verl_ext.checks.tokens import render_rows
from verl_ext.checks.trials import MakeScorer, cached_and_uncached, measure_speed, repeated, score_all, speed_finding
from verl_ext.run.settings import mapping_of
from verl_ext.sampling.types import EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
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


def sample_student(
    config: DictConfig,
    settings: DoctorConfig,
    rows: Sequence[Mapping[str, Any]],
    teachers: Mapping[str, Any],
    tokenizer: Any,
) -> list[Rollout]:
    """One answer to each of the first rows, drawn at temperature 1."""
    picked = rows[: settings.rows]
    kwargs = mapping_of(config.data.apply_chat_template_kwargs)
    prompts, teacher_prompts = (
        render_rows(tokenizer, picked, column, kwargs) for column in ("prompt", "teacher_messages")
    )
    path, max_tokens = config.student.path, min(settings.response_tokens, config.data.max_response_length)
    rollout = config.actor_rollout_ref.rollout
    if settings.sampler == "vllm":
        requests = [Request(number, list(row["prompt"])) for number, row in enumerate(picked)]
        sampling = SamplingConfig(temperature=1.0, max_tokens=max_tokens, stop=[], seed=settings.seed)
        tp, memory = rollout.tensor_model_parallel_size, rollout.gpu_memory_utilization
        engine = EngineConfig(rollout.dtype, tp, memory, enforce_eager=True)
        with VllmSampler(path, sampling, engine, requests, kwargs) as sampler:
            samples = sampler.sample(requests)
        sampled = [(sample.ids, np.array(sample.logprobs, np.float32)) for sample in samples]
    else:
        device = config.trainer.device
        sampled = sample_with_transformers(
            path, prompts, max_tokens=max_tokens, dtype=rollout.dtype, device=device, seed=settings.seed
        )
    return [
        Rollout(prompt, teacher_prompt, ids, logprobs, teacher_of_row(row, teachers))
        for row, prompt, teacher_prompt, (ids, logprobs) in zip(picked, prompts, teacher_prompts, sampled, strict=True)
    ]


@contextmanager
def serving(teacher: TeacherConfig) -> Iterator[list[str]]:
    """As `serving_teacher`, and a managed one leaves no log."""
    with (
        tempfile.TemporaryDirectory(prefix="doctor-") as folder,
        serving_teacher(teacher, Path(folder) / "teacher.log") as urls,
    ):
        yield urls


def teacher_findings(case: Case) -> list[Finding]:
    """All checks of one teacher, and of its precision where that was asked for."""
    try:
        with serving(case.teacher) as urls:
            findings, scored = asyncio.run(ask(case, urls))
        dtype = case.settings.reference(case.teacher)
        if dtype is not None and scored is not None:
            findings.append(compare_precision(case, dtype, scored))
        return findings
    except (RuntimeError, TimeoutError) as error:
        lines = str(error).strip().splitlines()
        fix = "read the end of the teacher's log in doctor.json"
        return [Finding("teacher", FAIL, lines[-1], fix, {"message": str(error)})]
    except ValueError as error:
        return [refused("teacher", error)]


async def ask(case: Case, urls: Sequence[str]) -> tuple[list[Finding], list[np.ndarray] | None]:
    """The findings on a teacher that runs at `urls`, and its log-probs of the rollouts under its own prompts."""
    assert case.teacher.model_path is not None
    vocab_size = vocab_size_of(case.teacher.model_path, trust_remote_code=case.teacher.trust_remote_code)
    make_pool = _pool_maker(case.teacher, vocab_size, urls)
    kl: dict[str, list[np.ndarray]] = {}
    record = case.settings.record
    tolerance = min(case.tolerance.max, case.teacher.probe_tolerance_nats)
    async with make_pool() as pool:
        checks: list[tuple[str, Callable[[], Awaitable[Finding]]]] = [
            ("log-probs", lambda: _against_transformers(case, pool)),
            ("repeated scoring", lambda: _repeated(case, pool)),
            ("prefix cache", lambda: _cache(case, make_pool, urls)),
            ("teacher = student", lambda: _self_kl(case, pool, kl)),
            ("fingerprint", lambda: check_record(record, case.teacher, urls, pool, vocab_size, tolerance)),
            ("speed", lambda: _speed(case, pool)),
        ]
        findings = [await _attempt(name, check) for name, check in checks]
    findings.append(measure_memory())
    return findings, kl.get("teacher_prompt")


async def _attempt(name: str, check: Callable[[], Awaitable[Finding]]) -> Finding:
    try:
        return await check()
    except TeacherError as error:
        return Finding(name, FAIL, str(error), "make the teacher answer log-prob requests; docs/teacher.md")
    except ValueError as error:
        return refused(name, error)


def _pool_maker(teacher: TeacherConfig, vocab_size: int, urls: Sequence[str]) -> Callable[[], TeacherPool]:
    """A pool that gives up after one more try: here an error is an answer."""
    patience = dataclasses.replace(teacher, max_retries=1, sample_timeout_s=2 * teacher.request_timeout_s)
    return lambda: TeacherPool(patience, vocab_size, urls)


async def _against_transformers(case: Case, pool: Scorer) -> Finding:
    """Log-probs of the same tokens by transformers on the teacher's own weights."""
    assert case.teacher.model_path is not None
    folder, limit = Path(case.teacher.model_path).expanduser(), case.settings.transformers_max_bytes
    size = weights_bytes(folder)
    if not 0 < size <= limit:
        seen = f"skipped: {size} bytes of local weights" if size else "skipped: the weights are not in a local folder"
        fix = f"raise doctor.transformers_max_bytes={limit}" if size else "give a folder as teacher.model_path"
        return Finding("log-probs", WARN, seen, fix, {"bytes": size})
    found = await score_all(pool, case.probes)
    dtype = "bfloat16" if case.teacher.quantization else case.teacher.dtype
    expected = transformers_logprobs(str(folder), case.probes, dtype=dtype, device=case.teacher.device)
    return judge_probe(found, expected, case.tolerance)


async def _repeated(case: Case, pool: Scorer) -> Finding:
    passes = await repeated(pool, case.probes, case.settings.repeats, case.settings.seed)
    fix = "the server's answer depends on what else is in the batch: look at its back ends and its kernel options"
    return judge_noise("repeated scoring", passes, case.tolerance, fix)


async def _cache(case: Case, make_scorer: MakeScorer, urls: Sequence[str]) -> Finding:
    trial = await cached_and_uncached(make_scorer, case.probes, urls, case.teacher.api_key_env)
    fix = "cached prompts give other log-probs: teacher.extra_args=[--disable-radix-cache], and report it to SGLang"
    finding = judge_noise("prefix cache", [trial.uncached, trial.cached], case.tolerance, fix)
    shares = {"uncached_share": trial.uncached_share, "cached_share": trial.cached_share}
    seen = f"{trial.cached_share:.0%} of the tokens cached against {trial.uncached_share:.0%}: {finding.seen}"
    return dataclasses.replace(finding, seen=seen, numbers={**finding.numbers, **shares})


async def _self_kl(case: Case, pool: Scorer, keep: dict[str, list[np.ndarray]]) -> Finding:
    """Reverse KL of the rollouts; `keep` receives the teacher's log-probs of them, which a later check needs."""
    assert case.teacher.model_path is not None
    rollout_logprobs = [rollout.rollout_logprobs for rollout in case.rollouts]

    async def kl(own_prompt: bool) -> ReverseKL:
        logprobs = await score_all(pool, [rollout.request(own_prompt=own_prompt) for rollout in case.rollouts])
        keep["own_prompt" if own_prompt else "teacher_prompt"] = logprobs
        return reverse_kl(rollout_logprobs, logprobs)

    own = await kl(True) if same_weights(case.student_path, case.teacher.model_path) else None
    return judge_self_kl(own, await kl(False), case.settings.tolerance(case.teacher, case.rollout_dtype))


async def _speed(case: Case, pool: Scorer) -> Finding:
    requests = [rollout.request(own_prompt=False) for rollout in case.rollouts]
    tokens = [len(request.prompt_ids) + len(request.response_ids) for request in requests]
    speed = await measure_speed(pool, requests)
    return speed_finding(speed, case.samples_a_step, sum(tokens) / len(tokens))


def compare_precision(case: Case, dtype: str, lower: list[np.ndarray]) -> Finding:
    """The same samples scored by a server at `dtype`, not quantised; a managed one runs after the teacher has stopped.

    Raises:
        ValueError, RuntimeError, TimeoutError: if that server does not start.
    """
    assert case.teacher.model_path is not None
    teacher = dataclasses.replace(case.teacher, dtype=dtype, quantization=None, mode="managed", urls=[], port=0)
    if case.settings.reference_url:
        teacher = dataclasses.replace(teacher, mode="external", urls=[case.settings.reference_url])
    requests = [rollout.request(own_prompt=False) for rollout in case.rollouts]
    vocab_size = vocab_size_of(case.teacher.model_path, trust_remote_code=teacher.trust_remote_code)

    async def score(urls: Sequence[str]) -> list[np.ndarray]:
        async with _pool_maker(teacher, vocab_size, urls)() as pool:
            return await score_all(pool, requests)

    try:
        with serving(teacher) as urls:
            higher = asyncio.run(score(urls))
    except TeacherError as error:
        return Finding("precision", FAIL, str(error), "make the reference server answer: doctor.reference_url")
    gap = precision_gap([rollout.rollout_logprobs for rollout in case.rollouts], lower, higher)
    pair = f"{case.teacher.quantization or case.teacher.dtype} against {dtype}"
    return judge_precision(gap, pair, case.settings.max_sign_changes)
