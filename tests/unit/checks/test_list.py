"""The list of checks, through its callers: training refuses by what the doctor shows, before anything is started."""

import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from breaking import other_template, swap_two_ids, teacher
from broken_runs import BROKEN
from omegaconf import OmegaConf
from tiny_student import ROW

from recipe.on_policy_distillation import main
from verl_ext.checks import context as context_module
from verl_ext.checks.check import DOCTOR, TRAIN
from verl_ext.checks.context import context_of_run
from verl_ext.checks.diagnose import diagnose
from verl_ext.checks.finding import FAIL, OK, SKIPPED, WARN, Finding, failed
from verl_ext.checks.registry import checks_of
from verl_ext.checks.run import CHEAP, check, look


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


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
    assert {row[0] for row in BROKEN} == {one.name for one in checks_of(TRAIN, *CHEAP)} - {
        "think tokens",
        "prompts",
        "special tokens",
        "remote code",
    }


@pytest.mark.parametrize("key", ["teacher.trust_remote_code", "actor_rollout_ref.model.trust_remote_code"])
def test_code_that_comes_with_a_model_is_off_and_said_when_on(compose_pair, key):
    assert not [line for line in check(compose_pair()) if "trust_remote_code" in line]
    said = [line for line in check(compose_pair(f"{key}=true")) if "trust_remote_code" in line]
    assert len(said) == 1
    assert said[0].startswith(f"warning: remote code: {key} is true: Python code that comes with the model runs as you")


def test_a_refused_run_starts_no_ray_and_leaves_no_folder(pair, monkeypatch):
    own = [f"student.path={pair.student}", f"teacher.python={sys.executable}", f"run_dir={pair.scratch}/run"]
    own += [f"data.train_files={pair.rows}", f"data.val_files={pair.rows}", "platform=cpu", "data.train_batch_size=1"]
    monkeypatch.setattr(sys, "argv", ["train", *own, *teacher(other_template)(pair)])
    with pytest.raises(SystemExit, match=r"error: chat template: row 0 prompt"):
        main()
    assert not ray.is_initialized()
    assert not (pair.scratch / "run").exists()


PLANNED = "from the start: 32 rows, 32 held out; 32 prompts x 4 samples a step, 16 steps (16.0 epochs, 2,048 samples)"


def test_a_good_run_passes_and_says_what_it_will_do(compose_pair):
    config = compose_pair()
    assert check(config) == [PLANNED]
    findings = look(context_of_run(config))
    assert {finding.verdict for finding in findings} == {OK}
    assert [finding.name for finding in findings] == [one.name for one in checks_of(DOCTOR, *CHEAP)]


def test_a_planned_run_says_what_stays_free(compose_pair):
    assert [line.partition(":")[0] for line in check(compose_pair("hardware=cpu"))] == ["from the start", "fits CPU"]


def test_warnings_are_one_line_each_and_refuse_nothing(compose_pair, pair):
    """A teacher of the same weights and prompt has nothing to teach; a template writes a token that there is not."""
    pq.write_table(
        pa.Table.from_pylist([ROW | {"teacher_messages": ROW["prompt"]}] * 32), pair.scratch / "same.parquet"
    )
    folder = pair.copy("think")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{# <think> #}")
    config = compose_pair(f"student.path={folder}", f"data.train_files={pair.scratch}/same.parquet")
    _, *lines = check(config)
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == ["think tokens", "prompts"]
    assert all(line.startswith("warning: ") and "\n" not in line for line in lines)
    assert "the student's template writes <think>, its vocabulary has no such token; give both" in lines[0]
    shown = by_name(look(context_of_run(config)))
    assert (shown["think tokens"].verdict, shown["prompts"].verdict) == (WARN, WARN)


def test_special_tokens_and_labels_that_no_row_has_are_said(compose_pair, pair):
    left_over = ROW | {"prompt": [{"role": "user", "content": "Good morning<|im_end|>"}]}
    pq.write_table(pa.Table.from_pylist([ROW] * 31 + [left_over]), pair.scratch / "left.parquet")
    _, *lines = check(compose_pair(f"data.train_files={pair.scratch}/left.parquet", "method.labels.label_set=[en,C++]"))
    assert "no row of data.train_files has the label C++" in lines[0]
    assert "1 of 32 rows hold special tokens as text (first: row 31, <|im_end|>)" in lines[1]


def test_the_labels_of_the_data_stand_in_the_runs_configuration(pair, monkeypatch):
    """The reward reads them out of responses; a worker of Ray has no rows to look at."""
    rows = [ROW | {"reward_model": {"ground_truth": label}} for label in ("C++", "C", "", None)] * 8
    pq.write_table(pa.Table.from_pylist(rows), pair.scratch / "code.parquet")
    own = [f"student.path={pair.student}", f"teacher.python={sys.executable}", f"run_dir={pair.scratch}/run"]
    files = [
        f"data.train_files={pair.scratch}/code.parquet",
        f"data.val_files=[{pair.scratch}/code.parquet,{pair.rows}]",
    ]
    monkeypatch.setattr(sys, "argv", ["train", *own, *files, "platform=cpu", "task=demo"])
    monkeypatch.setattr("verl_ext.trainer.launch.launch", lambda *_: None)
    main()
    assert OmegaConf.load(pair.scratch / "run" / "config.yaml").method.labels.label_set == ["C", "C++", "en"]


def test_a_store_that_answers_needs_no_interpreter(compose_pair, pair):
    """Training and the doctor said two things about this one."""
    replay = ("teacher.store_mode=replay", f"teacher.store_path={pair.scratch}", "teacher.python=/nowhere/python")
    config = compose_pair(*replay)
    assert check(config) == [PLANNED]
    assert failed(look(context_of_run(config))) == []


def test_what_depends_on_a_failure_is_skipped_and_the_rest_is_shown(compose_pair):
    shown = by_name(look(context_of_run(compose_pair("data.train_files=none.parquet", "teacher.python=/nowhere/p"))))
    assert [name for name, finding in shown.items() if finding.verdict == FAIL] == ["data", "interpreter"]
    assert shown["tokenizer"].verdict == OK
    skipped = shown["not looked at"]
    assert skipped.verdict == SKIPPED
    assert skipped.seen.startswith(
        "labels, tools, batch, teacher names, special tokens, roles, tools in the prompt, pro"
    )


def test_a_teacher_that_is_not_there_hides_nothing_of_another(compose_pair, pair):
    pq.write_table(pa.Table.from_pylist([ROW | {"teacher": name} for name in "ab" * 16]), pair.scratch / "two.parquet")
    two = ("teachers.a.port=0", "teachers.b.model_path=/nowhere/m", f"data.train_files={pair.scratch}/two.parquet")
    shown = by_name(look(context_of_run(compose_pair(*two))))
    assert [name for name, finding in shown.items() if finding.verdict == FAIL] == ["b: teacher model"]
    assert shown["a: vocabulary"].verdict == OK
    skipped = ("teacher weights", "teacher tokenizer", "teacher context", "teacher engine", "tokenizer")
    names = ", ".join(f"b: {name}" for name in (*skipped, "chat template", "think tokens", "prompts", "vocabulary"))
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
