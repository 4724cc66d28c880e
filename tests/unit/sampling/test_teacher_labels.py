import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from verl_ext.data.conversations import PATTERNS, Reading, from_jsonl, from_parquet, read_label, to_jsonl, to_parquet
from verl_ext.data.rows import LABELS, LANGUAGE, MOST_LABELS, make_row
from verl_ext.data.sentences import TRANSLATION, Sentence, tinker_file
from verl_ext.ledger import ledger
from verl_ext.ledger.meter import Meter
from verl_ext.sampling.teacher_labels import LabelConfig, LabelRun, create_labels
from verl_ext.sampling.types import Answer, EngineConfig, SamplingConfig

TWO = "Final Answer: en\nNo, wait.\nFinal Answer: de."


@pytest.mark.parametrize(
    ("answer", "extract", "policy", "label", "reason"),
    [
        (TWO, "final_answer", "tinker", "en", ""),
        (TWO, "final_answer", "strict", "de", ""),
        ("Final Answer: English", "final_answer", "tinker", "English", ""),
        ("Final Answer: English", "final_answer", "strict", "", "'English' is not one of the labels"),
        ("Final Answer: en, Final Answer: xx", "final_answer", "strict", "", "'xx' is not one of the labels"),
        ("final answer: en", "final_answer", "tinker", "", "no label found"),
        ("Final Answer:en", "final_answer", "tinker", "", "no label found"),
        ("Final Answer: C++", "final_answer", "tinker", "C", ""),
        ("<think>Final Answer: de", "final_answer", "tinker", "de", ""),
        ("Positive.", "whole", "exact", "", "'Positive.' is not one of the labels"),
        (" en\n", "whole", "exact", "en", ""),
        ("Final Answer: de\nFinal Answer: en \n", "final_answer", "exact", "en", ""),
        ("Final Answer: EN", "final_answer", "exact", "", "'EN' is not one of the labels"),
        ("Final Answer: {en}", "final_answer", "tinker", "", "no label found"),
        (" \n", "whole", "tinker", "", "no label found"),
        (" en\n", "whole", "strict", "en", ""),
        ("en<|eos|>", "whole", "strict", "en", ""),
        ("Final Answer: en or de", "final_answer", "strict", "", "several labels: en, de"),
        ("Final Answer:", "final_answer", "strict", "", "the answer ends before the label"),
        ("<think>en", "whole", "strict", "", "there is no answer beside the thinking"),
        (" it is\nen ", "whole", "tinker", "it is\nen", ""),
    ],
)
def test_reading_a_label(answer, extract, policy, label, reason):
    assert read_label(answer, extract, policy, LABELS) == Reading(label, reason)


def test_tinker_reading_is_that_of_the_installed_recipe():
    source = tinker_file("recipes", "prompt_distillation", "create_data.py").read_text()
    assert f're.search(r"{PATTERNS["final_answer"].pattern}", response)' in source


def conversations(*answers: str) -> list[dict]:
    return [
        {
            "messages": [{"role": "user", "content": f"schön \u2028 {i}"}, {"role": "assistant", "content": answer}],
            "index": i,
            "label": "de",
        }
        for i, answer in enumerate(answers)
    ]


def test_a_line_is_what_tinker_writes():
    line = to_jsonl(conversations("de"), columns=("messages",))
    messages = [{"role": "user", "content": "schön \u2028 0"}, {"role": "assistant", "content": "de"}]
    assert line.decode() == json.dumps({"messages": messages}) + "\n"


def test_both_files_convert_to_each_other_without_loss(tmp_path):
    rows = conversations("de", "en", "ot")
    jsonl, parquet = tmp_path / "c.jsonl", tmp_path / "c.parquet"
    parquet.write_bytes(to_parquet(rows))
    jsonl.write_bytes(to_jsonl(from_parquet(parquet)))
    assert from_jsonl(jsonl) == rows
    tinkers = to_jsonl(rows, columns=("messages",))
    jsonl.write_bytes(tinkers)
    parquet.write_bytes(to_parquet(from_jsonl(jsonl)))
    assert to_jsonl(from_parquet(parquet)) == tinkers


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object, found a list"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user"}]}', "content of the user message is missing"),
        ('{"messages": [{"role": "teacher", "content": "x"}]}', "role is 'teacher'"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content of the user message is 3"),
        ('{"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}', "a message has tool_calls"),
        ('{"conversations": [{"from": "human", "value": "x"}]}', "--from sharegpt"),
        ('{"messages": [{"role": "user", "content": "x"}], "n": 1}', "unknown key 'n'"),
        ('{"messages": [{"role": "user", "content": "x"}], "index": true}', "index is True"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        ("", "not JSON"),
    ],
)
def test_jsonl_errors_name_the_line(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    good = to_jsonl(conversations("de")).decode()
    path.write_text(good + line + "\n" + good)
    with pytest.raises(ValueError, match=r"c\.jsonl:2: .*" + message):
        from_jsonl(path)


def test_parquet_errors():
    with pytest.raises(ValueError, match="row 1 has the columns"):
        to_parquet([conversations("de")[0], {"messages": []}])
    with pytest.raises(ValueError, match="no conversation"):
        to_parquet([])


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [
        (LabelConfig, {"splits": []}, r"labels\.splits"),
        (LabelConfig, {"splits": ["test"]}, r"labels\.splits"),
        (LabelConfig, {"splits": ["train", "train"]}, r"labels\.splits=.*twice"),
        (LabelConfig, {"extract": "regex"}, r"labels\.extract"),
        (LabelConfig, {"policy": "loose"}, r"labels\.policy"),
        (LabelConfig, {"chunk": 0}, "chunk"),
        (SamplingConfig, {"temperature": -1.0}, r"sampling\.temperature"),
        (SamplingConfig, {"top_p": 0.0}, r"sampling\.top_p"),
        (SamplingConfig, {"top_k": 0}, r"sampling\.top_k"),
        (SamplingConfig, {"max_tokens": 0}, r"sampling\.max_tokens"),
        (EngineConfig, {"tp": 0}, r"engine\.tp"),
        (EngineConfig, {"gpu_memory_utilization": 1.5}, r"engine\.gpu_memory_utilization"),
    ],
)
def test_an_error_names_the_key(kind, settings, key):
    with pytest.raises(ValueError, match=key):
        kind(**settings)


class Interrupted(Exception):
    pass


class ScriptedSampler:
    """Stands in for an engine, to interrupt it where we want; `tests/integration/test_labels.py` has a real one."""

    def __init__(self, texts: dict[int, str], chunks_before_interruption: int = 99) -> None:
        self.texts = texts
        self.chunks_left = chunks_before_interruption
        self.asked: list[int] = []
        self.meter = Meter(None, gpus=0, devices=1)

    def answer(self, requests):
        if not self.chunks_left:
            raise Interrupted
        self.chunks_left -= 1
        self.asked += [request.index for request in requests]
        for _ in requests:
            self.meter.answered(prompt=5, cached=0, sampled=2)
        return [Answer(self.texts[request.index], 2, "stop") for request in requests]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A labelling run over 6 rows, and a way to give it a sampler."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [
        make_row(Sentence(i, f"text {i}", "en", 0, TRANSLATION, "en"), "name it: {text}", "train", LANGUAGE)
        for i in (1, 2, 4, 5, 7, 9)
    ]
    job = LabelRun(
        teacher=str(model),
        labels=LabelConfig(extract="whole", policy="strict", chunk=2),
        sampling=SamplingConfig(),
        engine=EngineConfig(),
        rows=rows,
        out_dir=tmp_path / "out",
        facts={"version": "test"},
        overwrite=False,
    )

    def with_sampler(sampler: ScriptedSampler, **changes) -> str:
        monkeypatch.setattr(LabelRun, "sampler", lambda *_: nullcontext(sampler))
        return create_labels(replace(job, **changes))

    with_sampler.job = job
    return with_sampler


TEXTS = {1: "en", 2: "de", 4: "no idea", 5: "en ", 7: "klingon", 9: "ot"}


def manifest_of(run) -> dict:
    return json.loads((run.job.out_dir / "labels_manifest.json").read_text())


def test_rows_stay_in_order_and_rejects_are_listed(run):
    run(ScriptedSampler(TEXTS))
    written = from_parquet(run.job.out_dir / "conversations.parquet")
    assert [(c["index"], c["messages"][1]["content"]) for c in written] == [(1, "en"), (2, "de"), (5, "en"), (9, "ot")]
    assert [c["messages"][0]["content"] for c in written] == ["text 1", "text 2", "text 5", "text 9"]
    manifest = manifest_of(run)
    assert manifest["counts"] == {"rows": 6, "kept": 4, "rejected": 2, "labels": {"en": 2, "de": 1, "ot": 1}}
    assert manifest["gold"] == {"rows": 4, "right": 2}
    assert [(r["row"], r["reason"]) for r in manifest["rejected"]] == [
        (4, "'no idea' is not one of the labels"),
        (7, "'klingon' is not one of the labels"),
    ]


def test_a_label_that_no_row_has_and_what_was_rejected_are_said(run):
    said = run(ScriptedSampler(TEXTS), labels=replace(run.job.labels, label_set=["en", "de", "ot", "non-toxic"]))
    assert "warning: no row has the label non-toxic" in said
    assert "most often rejected (1 rows): 'no idea' is not one of the labels" in said
    assert manifest_of(run)["labels_without_rows"] == ["non-toxic"]


def test_answers_of_their_own_are_no_labels_that_lack_a_row(run):
    one, numbers = run.job.rows[0], range(MOST_LABELS + 1)
    rows = [one | {"reward_model": {"ground_truth": f"{n}"}, "extra_info": {"index": n}} for n in numbers]
    reading = replace(run.job.labels, extract="whole", policy="tinker")
    said = run(ScriptedSampler(dict.fromkeys(numbers, "0")), rows=rows, labels=reading)
    assert "101 labelled rows" in said
    assert "warning" not in said
    assert manifest_of(run)["labels_without_rows"] == []


def test_the_labels_are_those_of_the_rows_where_none_are_given(run):
    rows = [row | {"reward_model": {"ground_truth": "C++" if i else "C"}} for i, row in enumerate(run.job.rows)]
    run(ScriptedSampler(dict.fromkeys(TEXTS, "**c++**")), rows=rows)
    manifest = manifest_of(run)
    assert manifest["settings"]["label_set"] == ["C", "C++"]
    assert manifest["counts"]["labels"] == {"C++": 6}


def test_strict_rejects_an_answer_that_was_cut_off(run):
    sampler = ScriptedSampler(TEXTS)
    sampler.answer = lambda requests: [Answer("en", 1000, "length" if r.index == 5 else "stop") for r in requests]
    run(sampler)
    assert [(r["row"], r["reason"][:22]) for r in manifest_of(run)["rejected"]] == [(5, "the answer was cut off")]


def test_an_interrupted_run_samples_only_what_is_missing(run):
    with pytest.raises(Interrupted):
        run(ScriptedSampler(TEXTS, chunks_before_interruption=2))
    journal = run.job.out_dir / "answers.jsonl"
    with journal.open("a") as file:
        file.write('{"index": 7, "te')  # killed while writing
    second = ScriptedSampler(TEXTS)
    run(second)
    assert second.asked == [7, 9]
    spent = ledger.read(run.job.out_dir / ledger.FILE).entries  # the interrupted run's too
    assert [(each.phase, each.samples, each.tokens.sampled) for each in spent] == [("labels", 4, 8), ("labels", 2, 4)]
    assert [json.loads(line)["index"] for line in journal.read_text().splitlines()[1:]] == [1, 2, 4, 5, 7, 9]
    third = ScriptedSampler(TEXTS)
    assert run(third).endswith("up to date")
    assert third.asked == []


def test_a_journal_without_answers_binds_nobody(run):
    with pytest.raises(Interrupted):
        run(ScriptedSampler(TEXTS, chunks_before_interruption=0))
    run(ScriptedSampler(TEXTS), sampling=SamplingConfig(seed=1))


def test_another_reading_costs_no_sampling(run):
    run(ScriptedSampler(TEXTS))
    tinker = replace(run.job.labels, policy="tinker")
    with pytest.raises(ValueError, match=r"other settings \(policy\).*overwrite=true"):
        run(ScriptedSampler({}), labels=tinker)
    again = ScriptedSampler({})
    run(again, labels=tinker, overwrite=True)
    assert again.asked == []
    assert manifest_of(run)["counts"]["kept"] == 6  # whatever was said


def test_nothing_is_overwritten_silently(run):
    run(ScriptedSampler(TEXTS))
    with pytest.raises(ValueError, match=r"\(sampling\.seed\).*overwrite=true"):
        run(ScriptedSampler(TEXTS), sampling=SamplingConfig(seed=1))
    (Path(run.job.teacher) / "config.json").write_text('{"changed": 1}')
    with pytest.raises(ValueError, match=r"\(model\).*overwrite=true"):
        run(ScriptedSampler(TEXTS))
    (Path(run.job.teacher) / "config.json").write_text("{}")
    out = run.job.out_dir
    (out / "conversations.jsonl").write_text("edited")
    with pytest.raises(ValueError, match=r"conversations\.jsonl changed"):
        run(ScriptedSampler(TEXTS))
    (out / "conversations.jsonl").unlink()  # as an interruption between the files leaves it
    run(ScriptedSampler({}))
    assert (out / "conversations.jsonl").exists()
    (out / "labels_manifest.json").unlink()
    with pytest.raises(ValueError, match="no labels_manifest"):
        run(ScriptedSampler({}))
    fresh = ScriptedSampler(TEXTS)
    run(fresh, sampling=SamplingConfig(seed=1), overwrite=True)
    assert len(fresh.asked) == 6


def test_no_label_in_any_answer_names_the_key(run):
    with pytest.raises(ValueError, match=r"labels\.extract=final_answer.*'en'"):
        run(ScriptedSampler(TEXTS), labels=LabelConfig())
