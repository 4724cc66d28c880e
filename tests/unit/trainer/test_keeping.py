"""What a validation leaves of a few held-out rows: our trainer and worker inside verl's own validation."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_sglang import logprob_of
from local_run import LABELS, TEACHER_PROMPT, write_rows

from verl_ext.run.metrics import read_metrics
from verl_ext.run.samples import read_samples
from verl_ext.trainer.kept import kept_rows

BEFORE = ("trainer.val_before_train=true", "trainer.test_freq=1")


def kept(run) -> list[dict]:
    lines, cut = read_samples(Path(run.config.run_dir) / "samples.jsonl")
    assert cut == 0
    return lines


def test_the_same_rows_are_kept_before_training_and_after_every_step(make_run):
    run = make_run(*BEFORE, "report.keep_samples=3", "report.alternatives=2", "trainer.total_training_steps=2")
    run.sampler.answers = [[5, 6, 7, 8]]
    run.fit()
    lines = kept(run)
    assert [(line["step"], line["row"]) for line in lines] == [(step, row) for step in (0, 1, 2) for row in (0, 2, 4)]
    tokenizer = run.worker.tokenizer
    for line in lines:
        teachers = run.ids(f"<|im_start|>user\n{TEACHER_PROMPT}text {line['row']}<|im_end|>\n<|im_start|>assistant\n")
        ids = [*teachers, 5, 6, 7, 8]
        wanted = [logprob_of(ids, position) for position in range(len(teachers), len(ids))]
        assert line["teacher_logprobs"] == pytest.approx(wanted, abs=1e-6)
        assert line["student_logprobs"] is not None
        assert all(-1 <= logprob <= 0 for logprob in line["student_logprobs"])
        assert (line["prompt"], line["truth"]) == (f"text {line['row']}", LABELS[line["row"] % 3])
        assert line["answer"] == tokenizer.decode([5, 6, 7, 8]) == "".join(line["tokens"])
        assert (line["finish"], line["score"]) == ("length", 0.0)
        ranked = [[[tokenizer.decode([0]), -1.0], [tokenizer.decode([1]), -2.0]]] * 4
        assert line["alternatives"] == ranked


def test_no_row_but_those_is_scored_and_training_is_as_without(make_run, tmp_path):
    run = make_run(*BEFORE, "report.keep_samples=2").fit()
    other = ("report.keep_samples=0", "report.all_metrics=true", f"run_dir={tmp_path}/without")
    without = make_run(*BEFORE, *other).fit()
    assert not Path(without.config.run_dir, "samples.jsonl").exists()
    assert len(run.teacher.sequences) - len(without.teacher.sequences) == 2 * 2  # two rows, twice
    for own, others in zip(run.samples, without.samples, strict=True):
        assert torch.equal(own["advantages"], others["advantages"])
    (row,), (everything,) = run.metrics, without.metrics
    assert row["teacher/scored"] == 4
    assert {"critic/score/mean", "global_seqlen/mean", "val-aux/num_turns/max"} <= set(everything) - set(row)
    assert set(row) <= set(everything)


def test_rows_are_kept_while_later_prompts_are_under_way(make_run):
    more = ("report.keep_samples=2", "pipeline.mode=one_step_off", "trainer.total_training_steps=2")
    run = make_run(*BEFORE, *more).fit()
    assert [(line["step"], line["row"]) for line in kept(run)] == [(step, row) for step in (0, 1, 2) for row in (0, 3)]
    assert [row["teacher/scored"] for row in run.metrics] == [4, 4]


def test_a_resumed_run_repeats_no_line(make_run):
    more = (*BEFORE, "report.keep_samples=2", "trainer.save_freq=1")
    make_run(*more).fit()
    run = make_run(*more, "trainer.total_training_steps=2").fit()  # validates at step 1 again before it trains
    assert [(line["step"], line["row"]) for line in kept(run)] == [(step, row) for step in (0, 1, 2) for row in (0, 3)]


def test_an_answer_without_a_score_is_kept_and_said(make_run, capsys):
    run = make_run(*BEFORE, "report.keep_samples=1", "trainer.total_training_steps=1", "teacher.max_unscored_share=1")
    run.sampler.answers = [[12, 13]]
    run.teacher.refuses = 12
    run.fit()
    assert [line["teacher_logprobs"] for line in kept(run)] == [None, None]
    assert [line["alternatives"] for line in kept(run)] == [None, None]
    assert "the kept answer to held-out row 0 has no score" in capsys.readouterr().out


def test_a_held_out_row_that_names_none_of_several_teachers_is_kept_without_a_score(make_run, tmp_path):
    rows = write_rows(tmp_path / "routed.parquet", 2, teacher=["a", "b"])
    heldout = write_rows(tmp_path / "heldout.parquet", 2, teacher=["b", "c"])
    run = make_run("trainer.val_before_train=true", f"data.val_files={heldout}", rows=rows, teachers=("a", "b")).fit()
    assert [line["teacher_logprobs"] is None for line in kept(run)] == [False, True]


def test_a_row_that_failed_is_counted(make_run):
    run = make_run(*BEFORE, "report.keep_samples=6")
    run.sampler.refused = [0]  # of the first validation
    run.fit()
    assert [line["step"] for line in kept(run)] == [0] * 5 + [1] * 6
    stages = Path(run.config.run_dir, "stages.jsonl").read_text().splitlines()
    assert "1 held-out rows to be kept have no answer" in [json.loads(line)["stage"] for line in stages]


def test_long_texts_are_cut_and_say_so(make_run, tmp_path):
    rows = write_rows(tmp_path / "long.parquet", 2, prompt=[[{"role": "user", "content": "de " * 20}]] * 2)
    run = make_run("trainer.val_before_train=true", "report.keep_samples=1", "report.longest=3", rows=rows)
    run.sampler.answers = [run.ids("de") * 4]
    (line,) = kept(run.fit())
    assert (line["prompt"], line["answer"], line["tokens"]) == ("de ", "ded", ["de"])
    assert (line["cut_characters"], line["cut_tokens"]) == (57 + 5, 3)  # of four tokens: data.max_response_length
    assert len(line["student_logprobs"]) == len(line["teacher_logprobs"]) == len(line["alternatives"]) == 1


def test_loggers_get_the_curves_and_the_answers(make_run, tmp_path, monkeypatch):
    """TensorBoard is itself; of W&B and trackio, which are elsewhere, what they are handed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    handed = []
    table = SimpleNamespace(
        init=lambda **_: None,
        finish=lambda **_: None,
        Table=lambda **rows: rows,
        log=lambda data, **_: handed.append(data),
    )
    trackio = SimpleNamespace(
        init=lambda **_: None,
        finish=lambda: None,
        log=lambda data, **_: handed.append(data),
        Trace=lambda **trace: trace,
        context_vars=SimpleNamespace(current_run=SimpleNamespace(get=lambda: None)),
    )
    monkeypatch.setitem(sys.modules, "wandb", table)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    run = make_run(
        *BEFORE, "report.keep_samples=2", "trainer.logger=[tensorboard,wandb,trackio]", "data.max_response_length=64"
    )
    run.sampler.answers = [run.ids("<img src=x>\n![x](http://x)")]
    run.fit()
    run.trainer.logger.finish()  # as verl, when its trainer has ended
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    (row,) = read_metrics(Path(run.config.run_dir) / "metrics.jsonl")
    assert set(events.Tags()["scalars"]) - {"step"} == set(row) - {"step"}
    (before, after) = events.Tensors("val/samples/text_summary")
    shown = after.tensor_proto.string_val[0].decode().splitlines()
    assert (before.step, after.step) == (0, 1)
    assert "    answer: <img src=x>" in shown
    assert "    ![x](http://x)" in shown
    assert all(line.startswith(("    ", "**row ")) for line in shown if line)
    tables = [data["val/samples"] for data in handed if "val/samples" in data]
    assert [len(each["data"]) for each in tables] == [2, 2]
    assert tables[0]["data"][1][:3] == [3, "text 3", "de"]
    traces = [data["val/generations"] for data in handed if "val/generations" in data]
    assert [len(each) for each in traces] == [2, 2]
    curves = [set(data) for data in handed if "teacher_kl" in data]
    assert curves == [set(row) - {"step"}] * 2


def test_kept_rows_are_spread_over_all():
    assert kept_rows([10, 11, 12, 13, 14, 15, 16], 3) == {10: 0, 12: 2, 14: 4}
    assert kept_rows([7, 8], 16) == {7: 0, 8: 1}
    assert kept_rows([7, 8], 0) == {}
