"""`recipe.evaluate` with a recorded sampler in vLLM's place: what is kept and shown of each answer."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import make_student

from recipe import evaluate
from verl_ext.ledger import ledger
from verl_ext.ledger.meter import Meter
from verl_ext.sampling.types import Answer

SENTENCES = ("good day", "guten Tag", "bonjour", "what is this")
TRUTHS = ("en", "de", "fr", "")


def row(text: str, truth: str, source: str = "languages") -> dict:
    """As verl's own data sets are: nothing of ours beside the teacher's messages."""
    return {
        "prompt": [{"role": "user", "content": text}],
        "teacher_messages": [{"role": "user", "content": f"Which language? {text}"}],
        "data_source": source,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 0},
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer, student = make_student()
    tokenizer.save_pretrained(folder)
    student.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, monkeypatch, model):
    """Evaluate rows with recorded answers by the last message that a model sees; returns what it wrote."""

    def run(rows: list[dict], said: dict[str, Answer], *overrides: str) -> tuple[dict, list[dict]]:
        class Recorded:
            def __init__(self, *_args) -> None:
                self.meter = Meter(None, gpus=0, devices=1)

            def __enter__(self):
                return self

            def __exit__(self, *_args) -> None:
                pass

            def answer(self, requests) -> list[Answer]:
                for _ in requests:
                    self.meter.answered(prompt=5, cached=0, sampled=2)
                return [said[request.messages[-1]["content"]] for request in requests]

        monkeypatch.setattr("verl_ext.evaluation.arms.VllmSampler", Recorded)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        out = tmp_path / "report" / "eval.json"
        arguments = (f"data={tmp_path}/rows.parquet", f"student={model}", f"out={out}")
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, *overrides])
        evaluate.main()
        assert {entry.phase for entry in ledger.read(out.parent / ledger.FILE).entries} == {"evaluate"}
        lines = (out.parent / "answers.jsonl").read_text().splitlines()
        return json.loads(out.read_text()), [json.loads(line) for line in lines]

    return run


def test_special_tokens_in_a_sentence_are_counted(run, capsys):
    said = {"good<|im_end|>": Answer("en", 1, "stop"), "day": Answer("en", 1, "stop")}
    run([row("good<|im_end|>", "en"), row("day", "en")], said, "extract=whole", "labels=[en,de]", "policy=strict")
    assert "warning: special tokens: 1 of 2 rows hold special tokens as text (first: row 0, " in capsys.readouterr().out


def test_every_answer_is_kept_and_wrong_ones_are_shown(run, model, tmp_path, capsys):
    said = {
        "good day": Answer("It is English: de", 4, "stop"),
        "guten Tag": Answer("de", 1, "stop"),
        "bonjour": Answer("<think>Is it" + " x" * 200, 8, "length"),
    } | {f"Which language? {s}": Answer(t, 1, "stop") for s, t in zip(SENTENCES, TRUTHS, strict=True)}
    said["what is this"] = Answer("en", 1, "stop")
    rows = [row(text, truth) for text, truth in zip(SENTENCES, TRUTHS, strict=True)]
    pq.write_table(pa.Table.from_pylist([row("what is this", "")]), tmp_path / "edge.parquet")
    settings = (f"teacher={model}", f"edge={tmp_path}/edge.parquet", "labels=[en,de,fr]")
    report, answers = run(rows, said, *settings)
    assert [(each["arm"], each["row"], each["edge"]) for each in answers] == [
        ("teacher", 0, False),
        ("teacher", 1, False),
        ("teacher", 2, False),
        ("teacher", 0, True),
        ("student", 0, False),
        ("student", 1, False),
        ("student", 2, False),
        ("student", 0, True),
    ]
    cut = answers[6]
    assert (cut["prompt"], cut["read"], cut["truth"], cut["right"]) == ("bonjour", "", "fr", False)
    assert (cut["answer"], cut["finish"], cut["truncated"], cut["tokens"]) == (said["bonjour"].text, "length", True, 8)
    assert answers[7]["right"] is None
    assert report["student"]["wrong"] == [each for each in answers[4:7] if not each["right"]]
    assert report["student"]["accuracy"] == sum(each["right"] for each in answers[4:7]) / 3
    printed = capsys.readouterr().out
    assert "1 of 4 rows have no right answer and are left out" in printed
    assert "row 2: right 'fr', read nothing, cut off: ... x x" in printed
    assert f"{tmp_path}/report/answers.jsonl" in printed


def test_problems_keep_what_their_box_holds(run, capsys):
    rows = [row("1/2?", "\\frac12", "math"), row("1/3?", "\\frac13", "math")]
    said = {"1/2?": Answer("\\boxed{0.5}", 5, "stop"), "1/3?": Answer("So \\boxed{0.33}.", 6, "stop")}
    report, answers = run(rows, said)
    assert [(each["read"], each["right"]) for each in answers] == [("0.5", True), ("0.33", False)]
    assert (report["student"]["accuracy"], report["student"]["wrong"]) == (0.5, answers[1:])
    assert "row 1: right '\\\\frac13', read '0.33': So \\boxed{0.33}." in capsys.readouterr().out


def test_rows_without_extra_info_are_evaluated(run):
    rows = [{key: value for key, value in row("hi", "en").items() if key != "extra_info"}]
    report, answers = run(rows, {"hi": Answer("en", 1, "stop")})
    assert (report["student"]["accuracy"], answers[0]["right"]) == (1.0, True)


def test_right_answers_that_are_numbers_are_text_and_nan_is_none(run, capsys):
    rows = [row(text, truth) for text, truth in zip(("a", "b", "c"), (1, 2, 3), strict=True)]
    said = {text: Answer("2", 1, "stop") for text in "abc"}
    _, answers = run(rows, said)
    assert [(each["truth"], each["right"]) for each in answers] == [("1", False), ("2", True), ("3", False)]
    _, answers = run(
        [each | {"reward_model": {"ground_truth": n or float("nan")}} for n, each in enumerate(rows)], said
    )
    assert "1 of 3 rows have no right answer and are left out" in capsys.readouterr().out
    assert [each["row"] for each in answers] == [1, 2]


def test_a_right_answer_that_cannot_be_one_is_refused_with_its_row(run):
    rows = [row("a", "1"), row("b", "2")]
    for each, truth in zip(rows, (["1"], ["2"]), strict=True):
        each["reward_model"]["ground_truth"] = truth
    with pytest.raises(SystemExit, match=r"rows\.parquet.*ground_truth"):
        run(rows, {})


def test_what_a_model_said_is_on_disk_before_the_next_one_starts(run, model, tmp_path):
    said = {"good day": Answer("en", 1, "stop")}  # the teacher's question was not recorded
    with pytest.raises(SystemExit):
        run([row("good day", "en")], said, f"base={model}", f"teacher={model}/../{model.rsplit('/', 1)[1]}")
    kept = [json.loads(line)["arm"] for line in (tmp_path / "report" / "answers.jsonl").read_text().splitlines()]
    assert kept == ["base", "student"]


def test_another_report_beside_it_keeps_its_own_answers(run, tmp_path):
    out = tmp_path / "report" / "second.json"
    with pytest.raises(FileNotFoundError):  # of `run`, which looks for eval.json's
        run([row("hi", "en")], {"hi": Answer("en", 1, "stop")}, f"out={out}")
    found = sorted(path.name for path in out.parent.iterdir())
    assert found == ["ledger.jsonl", "second.answers.jsonl", "second.json", "second.png"]


def test_answers_that_are_no_labels_are_refused_before_any_engine(run):
    rows = [row(f"{number}?", str(number)) for number in range(101)]
    with pytest.raises(SystemExit, match=r"are no labels; give labels=\[\.\.\.\], or data_source=math"):
        run(rows, {})
