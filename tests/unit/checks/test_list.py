"""The list of checks, through its callers: training refuses by what the doctor shows, before anything is started."""

import copy
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from omegaconf import DictConfig, OmegaConf
from tiny_student import ROW, write_student

from recipe.on_policy_distillation import main
from verl_ext.checks import context as context_module
from verl_ext.checks import memory
from verl_ext.checks.check import DOCTOR, TRAIN
from verl_ext.checks.config import DoctorConfig
from verl_ext.checks.context import context_of_run
from verl_ext.checks.diagnose import diagnose
from verl_ext.checks.finding import FAIL, OK, SKIPPED, WARN, Finding, failed
from verl_ext.checks.registry import checks_of
from verl_ext.checks.run import CHEAP, check, look
from verl_ext.run.hydra import schema_of


class Pair(NamedTuple):
    """A run on a tiny student that teaches itself, and a folder to spoil copies in."""

    student: Path
    rows: Path
    scratch: Path

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.student, self.scratch / name))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    pq.write_table(pa.Table.from_pylist([ROW] * 32), folder / "rows.parquet")
    return write_student(folder / "base"), folder / "rows.parquet"


@pytest.fixture
def pair(built, tmp_path, monkeypatch) -> Pair:
    monkeypatch.setattr(memory, "CPU_BASE_GIB", 0.0)  # what else runs on this machine is not under test
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    return Pair(*built, tmp_path)


@pytest.fixture(scope="module")
def composed(compose_run) -> Callable[[str], DictConfig]:
    return functools.cache(lambda group: compose_run("platform=cpu", "task=demo", *([group] if group else [])))


@pytest.fixture
def compose_pair(composed, pair) -> Callable[..., DictConfig]:
    """`compose_pair("hardware=cpu", "teacher.tp=0", ...)`: composed once a group: verl has many keys."""

    def run(*overrides: str) -> DictConfig:
        groups = [word for word in overrides if word.startswith("hardware=")]
        config = copy.deepcopy(composed("".join(groups)))
        OmegaConf.set_struct(config, False)
        own = [f"student.path={pair.student}", f"teacher.python={sys.executable}", f"run_dir={pair.scratch}/run"]
        own += [f"data.train_files={pair.rows}", f"data.val_files={pair.rows}"]
        config.merge_with_dotlist([*own, *(word for word in overrides if word not in groups)])
        config.doctor = schema_of(DoctorConfig)
        return config

    return run


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def teacher(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that takes a changed copy of the student as teacher."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("teacher"))
        return [f"teacher.model_path={folder}"]

    return override


def changed_config(**changes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def student(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that trains a changed copy of the student, taught by the student itself."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("student"))
        return [f"student.path={folder}", f"teacher.model_path={pair.student}"]

    return override


def replaced_config(**content) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(content)) and None


def composite(folder: Path) -> None:
    """The text model as the text part of one that sees pictures too."""
    text = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2_5_vl_text"}
    replaced_config(model_type="qwen2_5_vl", text_config=text)(folder)


def changed_tokenizer(folder: Path, **changes) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_eos(folder: Path) -> None:
    """As the tokenizer of SmolLM2 is after its conversion from GGUF."""
    changed_tokenizer(folder, eos_token="<|im_start|>")


def no_eos(folder: Path) -> None:
    changed_tokenizer(folder, eos_token=None)


def swap_two_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "!")


def huge(pair: Pair) -> list[str]:
    folder = pair.copy("huge")
    with (folder / "more.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)  # sparse
    return [f"student.path={folder}", f"teacher.model_path={pair.student}"]


def without_template(pair: Pair) -> list[str]:
    folder = pair.copy("plain")
    (folder / "chat_template.jinja").unlink()
    return [f"student.path={folder}"]


def words(*overrides: str) -> Callable[[Pair], list[str]]:
    return lambda _: list(overrides)


NOBODY = ("teacher.mode=external", "teacher.urls=[http://127.0.0.1:9]", "teacher.request_timeout_s=5")
BROKEN = [
    ("required settings", words("data.val_files=null"), r"data\.val_files is not set"),
    ("method", words("method.student_logprobs=old"), r"method\.student_logprobs=old.*set it to false"),
    ("teacher settings", words("teacher.tp=0"), r"teacher\.tp: 0 is below 1"),
    ("memory plan", words("hardware=cpu", "trainer.nnodes=2"), r"on CPU trainer\.nnodes=2, trainer"),
    ("sampling", words("actor_rollout_ref.rollout.temperature=0.7"), r"rollout\.temperature=0\.7.*set it to 1\.0"),
    (
        "sampling",
        words("actor_rollout_ref.rollout.name=sglang"),
        r"rollout\.name=sglang: the student samples with vllm",
    ),
    ("sampling", words("actor_rollout_ref.rollout.top_p=0.9"), r"actor_rollout_ref\.rollout\.top_p=0\.9"),
    ("sampling", words("actor_rollout_ref.rollout.top_k=20"), r"actor_rollout_ref\.rollout\.top_k=20"),
    ("models", words("student.path=/nowhere/m"), r"student\.path=/nowhere/m: no such folder"),
    ("data", words("data.train_files=none.parquet"), r"data\.train_files=none\.parquet: no such file"),
    ("held-out data", words("data.val_files=none.parquet"), r"data\.val_files=none\.parquet: no such file"),
    (
        "batch",
        words("data.train_batch_size=33"),
        r"data\.train_batch_size=33 is larger than data\.train_files: 32 rows",
    ),
    (
        "teacher names",
        words("teachers.a.port=1", "teachers.b.port=2"),
        r"data\.train_files row 0: column teacher says None",
    ),
    ("free memory", huge, r"not enough memory.*smaller student\.path"),
    ("teacher model", words("teacher.model_path=/nowhere/m"), r"teacher\.model_path=/nowhere/m: no such folder"),
    ("exposure", words("teacher.host=0.0.0.0"), r"teacher\.host=0\.0\.0\.0 lets other machines in"),
    ("interpreter", words("teacher.python=/nowhere/python"), r"teacher\.python=/nowhere/python.*make setup"),
    (
        "teacher weights",
        teacher(changed_config(quantization_config={"quant_method": "fp8"})),
        r"teacher\.model_path: .* holds fp8 weights.*teacher\.device=cuda",
    ),
    ("server", words(*NOBODY), r"teacher\.urls: a server does not score: http://127\.0\.0\.1:9: ClientConnectorError"),
    ("student tokenizer", without_template, r"student\.path=.* has no chat template; add chat_template\.jinja"),
    (
        "student model",
        student(composite),
        r"student\.path=.* is a composite model \(model_type qwen2_5_vl, .*text models",
    ),
    ("student model", student(replaced_config(model_type="t5")), r"student\.path=.* is an encoder-decoder"),
    ("student model", student(changed_config(model_type="new")), r"student\.path=.*its config\.json cannot be read"),
    ("end of answer", student(other_eos), r"ends with '<\|im_start\|>' for its tokenizer, with '<\|im_end\|>' for the"),
    ("end of answer", student(no_eos), r"student\.path=.*: its tokenizer has no eos_token; name"),
    ("weight transfer", student(changed_config(vocab_size=1 << 50)), r"MiB of shared memory, .*--shm-size"),
    (
        "student context",
        student(changed_config(max_position_embeddings=8)),
        r"row 0: prompt has \d+ tokens \(\+4 of response\), student\.path=.* reads 8 .*lower data\.max_resp",
    ),
    (
        "teacher context",
        teacher(changed_config(max_position_embeddings=12)),
        r"row 0: teacher_messages .*teacher\.model_path=.* reads 12 \(max_position_embeddings\): shorten the prompt",
    ),
    (
        "prompt lengths",
        words("data.max_prompt_length=3"),
        r"row 0: prompt has \d+ tokens.*raise data\.max_prompt_length=3",
    ),
    (
        "teacher context",
        words("teacher.context_length=20"),
        r"row 0: teacher_messages .*raise teacher\.context_length=20",
    ),
    (
        "teacher tokenizer",
        teacher(lambda folder: (folder / "tokenizer.json").unlink()),
        r"teacher\.model_path=.*: no tokenizer can be read",
    ),
    ("tokenizer", teacher(swap_two_ids), r"student\.path and teacher\.model_path have different tokenizers: 2 tokens"),
    ("chat template", teacher(other_template), r"row 0 prompt, line \d+: student .*; copy .* to teacher\.model_path"),
    (
        "vocabulary",
        teacher(changed_config(vocab_size=5)),
        r"teacher 5, .*; resize the embedding of teacher\.model_path",
    ),
]


@pytest.mark.parametrize(("name", "break_it", "message"), BROKEN, ids=[f"{row[0]}-{i}" for i, row in enumerate(BROKEN)])
def test_training_refuses_by_what_the_doctor_shows(compose_pair, pair, name, break_it, message):
    config = compose_pair(*break_it(pair))
    with pytest.raises(ValueError, match=message) as refused:
        check(config)
    assert "\n" not in str(refused.value)
    shown = by_name(diagnose(config))
    finding = next(shown[own] for own in (name, f"a: {name}") if own in shown)
    assert finding.verdict == FAIL
    assert re.search(message, f"{finding.seen}; {finding.fix}")
    assert shown["engines"].seen.startswith("not started")


def test_every_cheap_check_that_can_fail_is_broken_once():
    assert {row[0] for row in BROKEN} == {one.name for one in checks_of(TRAIN, *CHEAP)} - {"think tokens", "prompts"}


def test_a_refused_run_starts_no_ray_and_leaves_no_folder(pair, monkeypatch):
    own = [f"student.path={pair.student}", f"teacher.python={sys.executable}", f"run_dir={pair.scratch}/run"]
    own += [f"data.train_files={pair.rows}", f"data.val_files={pair.rows}", "platform=cpu", "data.train_batch_size=1"]
    monkeypatch.setattr(sys, "argv", ["train", *own, *teacher(other_template)(pair)])
    with pytest.raises(SystemExit, match=r"error: chat template: row 0 prompt"):
        main()
    assert not ray.is_initialized()
    assert not (pair.scratch / "run").exists()


def test_a_good_run_passes_without_a_word(compose_pair):
    config = compose_pair()
    assert check(config) == []
    findings = look(context_of_run(config))
    assert {finding.verdict for finding in findings} == {OK}
    assert [finding.name for finding in findings] == [one.name for one in checks_of(DOCTOR, *CHEAP)]


def test_a_planned_run_says_what_stays_free(compose_pair):
    assert [line.partition(":")[0] for line in check(compose_pair("hardware=cpu"))] == ["fits CPU"]


def test_warnings_are_one_line_each_and_refuse_nothing(compose_pair, pair):
    """A teacher of the same weights and prompt has nothing to teach; a template writes a token that there is not."""
    pq.write_table(
        pa.Table.from_pylist([ROW | {"teacher_messages": ROW["prompt"]}] * 32), pair.scratch / "same.parquet"
    )
    folder = pair.copy("think")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{# <think> #}")
    config = compose_pair(f"student.path={folder}", f"data.train_files={pair.scratch}/same.parquet")
    lines = check(config)
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == ["think tokens", "prompts"]
    assert all(line.startswith("warning: ") and "\n" not in line for line in lines)
    assert "the student's template writes <think>, its vocabulary has no such token; give both" in lines[0]
    shown = by_name(look(context_of_run(config)))
    assert (shown["think tokens"].verdict, shown["prompts"].verdict) == (WARN, WARN)


def test_a_store_that_answers_needs_no_interpreter(compose_pair, pair):
    """Training and the doctor said two things about this one."""
    replay = ("teacher.store_mode=replay", f"teacher.store_path={pair.scratch}", "teacher.python=/nowhere/python")
    config = compose_pair(*replay)
    assert check(config) == []
    assert failed(look(context_of_run(config))) == []


def test_what_depends_on_a_failure_is_skipped_and_the_rest_is_shown(compose_pair):
    shown = by_name(look(context_of_run(compose_pair("data.train_files=none.parquet", "teacher.python=/nowhere/p"))))
    assert [name for name, finding in shown.items() if finding.verdict == FAIL] == ["data", "interpreter"]
    assert shown["tokenizer"].verdict == OK
    skipped = shown["not looked at"]
    assert skipped.verdict == SKIPPED
    assert skipped.seen.startswith(
        "batch, teacher names, prompt lengths, student context, teacher context, chat template, vocabulary, "
    )


def test_a_teacher_that_is_not_there_hides_nothing_of_another(compose_pair, pair):
    pq.write_table(pa.Table.from_pylist([ROW | {"teacher": name} for name in "ab" * 16]), pair.scratch / "two.parquet")
    two = ("teachers.a.port=0", "teachers.b.model_path=/nowhere/m", f"data.train_files={pair.scratch}/two.parquet")
    shown = by_name(look(context_of_run(compose_pair(*two))))
    assert [name for name, finding in shown.items() if finding.verdict == FAIL] == ["b: teacher model"]
    assert shown["a: vocabulary"].verdict == OK
    skipped = ("teacher weights", "teacher tokenizer", "teacher context", "tokenizer", "chat template", "think tokens")
    names = ", ".join(f"b: {name}" for name in (*skipped, "vocabulary", "prompts"))
    assert shown["not looked at"].seen.startswith(f"{names}:")


def test_each_of_several_teachers_is_named(compose_pair, pair):
    pq.write_table(pa.Table.from_pylist([ROW | {"teacher": name} for name in "ab" * 16]), pair.scratch / "two.parquet")
    other = teacher(swap_two_ids)(pair)[0].partition("=")[2]
    config = compose_pair(
        "teachers.a.port=0", f"teachers.b.model_path={other}", f"data.train_files={pair.scratch}/two.parquet"
    )
    with pytest.raises(
        ValueError, match=r"^teachers\.b: student\.path and teacher\.model_path have different tokenizers"
    ):
        check(config)
    shown = by_name(look(context_of_run(config)))
    assert (shown["a: tokenizer"].verdict, shown["b: tokenizer"].verdict) == (OK, FAIL)


def test_files_are_read_once(compose_pair, pair, monkeypatch):
    reads: list[str] = []

    def counted(read):
        return lambda *args: reads.append(args[-1]) or read(*args)

    for name in ("load_tokenizer", "check_rows"):
        monkeypatch.setattr(context_module, name, counted(getattr(context_module, name)))
    check(compose_pair())
    assert sorted(reads) == sorted([str(pair.student), str(pair.rows), str(pair.rows)])  # rows: train and held out
