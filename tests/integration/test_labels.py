"""Labelling, and sampling and scoring as single stages, with real engines: order, resuming, vLLM against SGLang."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recipe.score import ScoreConfig, score
from verl_ext.data.conversations import from_jsonl, from_parquet
from verl_ext.data.rows import LABELS
from verl_ext.data.sentences import file_sentences
from verl_ext.demo.tiny_pair import build_model, train_tokenizer
from verl_ext.evaluation.disagreement import Scoring, score_answers
from verl_ext.ledger import ledger
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.sampling.answers import AnswerRun, Answers, generate
from verl_ext.sampling.served import ServedSampler
from verl_ext.sampling.types import EngineConfig, Request, SamplingConfig
from verl_ext.sampling.vllm import ENGINE_THREADS, VllmSampler
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
CHUNK = 8
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,  # the smallest that vLLM's CPU attention has
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model: what it says makes no sense, and every row gets its own."""
    import torch

    folder = tmp_path_factory.mktemp("label-teacher")
    texts = [s.text for s in file_sentences(ROOT / "data" / "sample.jsonl")]
    tokenizer = train_tokenizer(texts, LABELS, 400)
    torch.manual_seed(3)
    build_model(tokenizer, SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(teacher: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={out}"),
        *(f"teacher={teacher}", "labels.extract=whole", f"labels.chunk={CHUNK}"),
        *("sampling.max_tokens=4", "sampling.temperature=1.0", "engine.dtype=float32"),
    ]


def start(teacher: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(teacher, out),
        cwd=ROOT,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(teacher: Path, out: Path) -> str:
    process = start(teacher, out)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]
    return printed


def journal(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that were made in one go."""
    out = tmp_path_factory.mktemp("whole")
    finish(teacher, out)
    return out


def test_rows_are_in_input_order_and_both_files_hold_them(whole: Path):
    rows = from_parquet(whole / "conversations.parquet")
    texts = {s.index: s.text for s in file_sentences(ROOT / "data" / "sample.jsonl")}
    assert [row["index"] for row in rows] == sorted(row["index"] for row in rows)
    assert all(row["messages"][0] == {"role": "user", "content": texts[row["index"]]} for row in rows)
    assert [row["messages"] for row in rows] == [c["messages"] for c in from_jsonl(whole / "conversations.jsonl")]
    answers = {record["index"]: record["text"].strip() for record in journal(whole)}
    assert all(row["messages"][1]["content"] == answers[row["index"]] for row in rows)
    assert len({row["messages"][1]["content"] for row in rows}) > 5


def test_the_ledger_holds_what_was_sampled(teacher: Path, whole: Path, prompted: Path):
    (labels,), (generated,) = (ledger.read(folder / ledger.FILE).entries for folder in (whole, prompted.parent))
    answers, took = journal(whole), json.loads((whole / "labels_manifest.json").read_text())["last_sampling"]
    assert (labels.phase, labels.samples, labels.devices) == ("labels", len(answers), 1)
    assert labels.tokens.sampled == took["tokens"] == sum(answer["tokens"] for answer in answers)
    assert labels.seconds == pytest.approx(took["seconds"], rel=0.01, abs=0.1)  # a quarter of a second in all
    rows = pq.read_table(whole / "train.parquet").to_pylist()
    tokenizer = load_tokenizer(str(teacher))
    read = sum(len(render_chat(tokenizer, row["teacher_messages"], {"enable_thinking": False})) for row in rows)
    assert labels.tokens.prefilled + labels.tokens.prefilled_cached == read
    assert labels.flops is not None
    assert labels.peak_bytes is not None
    assert generated.phase == "generate"
    assert generated.tokens.prefilled_cached > 0  # two samples of a prompt


def wait_until_nobody_is_left(group: int) -> None:
    """vLLM's engine and worker, in the group of the process that was killed, end by themselves."""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.2)
    except ProcessLookupError:
        return
    os.killpg(group, signal.SIGKILL)
    pytest.fail("vLLM's engine outlived the killed process by 60 s")


def test_a_killed_run_goes_on_without_sampling_again(teacher: Path, whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = start(teacher, out)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"labels: {CHUNK}/"):
            process.kill()
            break
    process.wait()
    wait_until_nobody_is_left(process.pid)
    before = journal(out)
    assert CHUNK <= len(before) < len(journal(whole))
    assert not (out / "conversations.jsonl").exists()
    assert "labelled rows" in finish(teacher, out)
    assert journal(out)[: len(before)] == before
    manifest = json.loads((out / "labels_manifest.json").read_text())
    assert manifest["last_sampling"]["rows"] == len(journal(whole)) - len(before)
    # The rows' seeds make it the run that was never killed.
    for name in ("conversations.jsonl", "conversations.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert "labels up to date" in finish(teacher, out)


@pytest.fixture(scope="module")
def server(teacher: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagedServer]:
    config = TeacherConfig(model_path=str(teacher), python=teacher_python, startup_timeout_s=240)
    with ManagedServer(config, tmp_path_factory.mktemp("server") / "server.log") as running:
        running.wait_ready()
        yield running


def engine_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & set(ENGINE_THREADS)


def test_a_served_teacher_answers_as_vllm_does(teacher: Path, server: ManagedServer):
    sentences = file_sentences(ROOT / "data" / "sample.jsonl")
    requests = [Request(s.index, [{"role": "user", "content": s.text}]) for s in sentences]
    sampling = SamplingConfig(temperature=0.0, max_tokens=6)
    served = ServedSampler(
        [server.url], str(teacher), sampling, max_concurrency=8, timeout_s=60, max_retries=1, api_key_env="NO_KEY"
    )
    assert served.served_models() == [str(teacher)]
    theirs = served.answer(requests)
    with VllmSampler(str(teacher), sampling, EngineConfig(dtype="float32"), requests) as sampler:
        ours = sampler.answer(requests)
        assert engine_threads() == set(ENGINE_THREADS)
    assert not engine_threads()  # one that lives on can abort a process that ends
    assert [(a.tokens, a.finish) for a in theirs] == [(a.tokens, a.finish) for a in ours]
    # SGLang writes U+FFFD for bytes that are no character, vLLM holds back all that follows: a random model's answers.
    texts = [(a.text, b.text) for a, b in zip(theirs, ours, strict=True) if "\ufffd" not in a.text]
    assert len(texts) > 5
    assert [text for text, _ in texts] == [text for _, text in texts]


@pytest.fixture(scope="module")
def prompted(teacher: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two samples of every training row, drawn with the prompt in view."""
    out = tmp_path_factory.mktemp("answers") / "answers.parquet"
    sampling = SamplingConfig(temperature=1.0, max_tokens=8, stop=[], enable_thinking=None)
    run = AnswerRun(
        str(teacher), str(whole / "train.parquet"), "teacher", 2, 0, sampling, EngineConfig(dtype="float32")
    )
    answers, took = generate(run, out, CHUNK, overwrite=False)
    ids = answers.table["response_ids"].to_pylist()
    assert took is not None
    assert took["tokens"] == sum(map(len, ids))
    assert sum(ids[i] == ids[i + 1] for i in range(0, len(ids), 2)) < len(ids) / 4  # each sample has its own seed
    return out


def scored_by(server: ManagedServer, answers: Answers, **changes: object) -> Scoring:
    config = TeacherConfig(mode="external", urls=[server.url], model_path=server.config.model_path)
    tokenizer = load_tokenizer(answers.model)
    return score_answers(answers, dataclasses.replace(config, **changes), tokenizer, 3, Path("not written"))


def test_the_sampler_as_its_own_teacher_has_no_kl_and_another_prompt_has(prompted: Path, server: ManagedServer):
    answers = Answers.read("data", str(prompted))
    same = scored_by(server, answers)
    assert same.errors == []
    gaps = np.concatenate([rollout - teacher for rollout, teacher in same.scored])
    print(f"\n{len(gaps)} tokens, teacher_kl {same.teacher_kl:+.1e}, greatest {np.abs(gaps).max():.1e} nats")
    assert len(gaps) > 200
    assert abs(same.teacher_kl) < 1e-4
    assert np.abs(gaps).max() < 1e-4

    other = answers.table.set_column(
        answers.table.column_names.index("teacher_messages"), "teacher_messages", answers.table["prompt"]
    )
    wrong = scored_by(server, dataclasses.replace(answers, table=other))
    print(f"without the prompt: teacher_kl {wrong.teacher_kl:+.4f}")
    assert wrong.teacher_kl > 0.01
    worst = wrong.disagreements[0]
    assert worst.reverse_kl > wrong.teacher_kl
    assert worst.teachers_id != answers.table["response_ids"][worst.index].as_py()[worst.position]
    assert worst.teachers_logprob > worst.teacher_logprob


def test_a_second_scoring_asks_only_the_store(prompted: Path, server: ManagedServer, tmp_path: Path, capsys):
    answers, out = Answers.read("data", str(prompted)), tmp_path / "scored.parquet"
    first = scored_by(server, answers, store_path=str(tmp_path / "store"), fingerprint="it")
    assert first.from_store == 0
    assert first.spent is not None
    assert (first.spent.samples, first.spent.devices) == (len(answers.table), 0)  # nobody knows a server's devices
    assert 0 < first.spent.tokens.scored < first.took["tokens"]  # samples share their prompts
    assert first.spent.flops is not None
    managed = dataclasses.replace(server.config, store_path=str(tmp_path / "store"), fingerprint="it")
    score(ScoreConfig(managed, str(prompted), str(out)))
    printed = capsys.readouterr().out
    assert f"{len(answers.table)}, 0" in printed
    assert "largest reverse KL: 10 tokens" in printed
    table = Answers.read("data", str(out)).table
    assert table["teacher_logprobs"].to_pylist() == [teacher.tolist() for _, teacher in first.scored]
    assert not list(tmp_path.glob("*.log"))  # no server was started


def test_the_verb_fails_where_nothing_was_scored(prompted: Path, teacher: Path, tmp_path: Path):
    command = [sys.executable, "-m", "recipe.score", f"data={prompted}", f"out={tmp_path}/scored.parquet"]
    command += [f"teacher.model_path={teacher}", "teacher.fingerprint=it", "teacher.store_mode=replay"]
    command += [f"teacher.store_path={tmp_path}/empty"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    table = Answers.read("data", f"{tmp_path}/scored.parquet").table
    assert (done.returncode, table["teacher_logprobs"].null_count) == (1, len(table))
    assert f"none of the {len(table)} samples was scored" in done.stderr
