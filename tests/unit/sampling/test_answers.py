"""Answers on disk: which sample is which, what an interruption costs, and what is refused."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize
from hydra.errors import ConfigCompositionException

from recipe.generate import GenerateConfig, summary
from verl_ext.evaluation.disagreement import on_policy
from verl_ext.ledger import ledger
from verl_ext.ledger.meter import Meter
from verl_ext.run.settings import settings_of
from verl_ext.sampling import answers as answers_module
from verl_ext.sampling.answers import COLUMNS, AnswerRun, Answers, generate
from verl_ext.sampling.types import EngineConfig, Sample, SamplingConfig

SAMPLING = SamplingConfig(temperature=1.0, stop=[], enable_thinking=None)


def rows(*names: str) -> list[dict]:
    return [
        {
            "prompt": [{"role": "user", "content": name}],
            "teacher_messages": [{"role": "user", "content": f"name it: {name}"}],
            "data_source": "language_id",
            "reward_model": {"style": "rule", "ground_truth": "en"},
            "topic": name.upper(),  # a column of the user's own
        }
        for name in names
    ]


class Interrupted(Exception):
    pass


class ScriptedSampler:
    """Stands in for vLLM, to interrupt it where we want; `tests/integration/test_labels.py` has the real one."""

    def __init__(self, chunks_before_interruption: int = 99) -> None:
        self.chunks_left = chunks_before_interruption
        self.asked: list[tuple[int, str]] = []
        self.meter = Meter(None, gpus=0, devices=1)

    def sample(self, requests) -> list[Sample]:
        if not self.chunks_left:
            raise Interrupted
        self.chunks_left -= 1
        self.asked += [(request.index, request.messages[0]["content"]) for request in requests]
        for _ in requests:
            self.meter.answered(prompt=5, cached=0, sampled=2)
        return [
            Sample("en", 2, "stop", [request.index, 1], [-0.1 - request.index, -0.2])
            if request.index != 3
            else Sample("e", 1, "length", [3], [-1.5])
            for request in requests
        ]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`start(sampler, **changes)`: two samples of each of three rows, in chunks of two."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pq.write_table(pa.Table.from_pylist(rows("a", "b", "c")), tmp_path / "rows.parquet")
    run = AnswerRun(str(tmp_path / "model"), str(tmp_path / "rows.parquet"), "student", 2, 0, SAMPLING, EngineConfig())

    def with_sampler(sampler: ScriptedSampler, *, overwrite: bool = False, **changes) -> Answers:
        monkeypatch.setattr(answers_module, "VllmSampler", lambda *_: nullcontext(sampler))
        return generate(replace(run, **changes), tmp_path / "out" / "a.parquet", 2, overwrite)[0]

    with_sampler.out = tmp_path / "out" / "a.parquet"
    with_sampler.run = run
    return with_sampler


def test_a_row_a_sample_with_the_datas_columns(start):
    sampler = ScriptedSampler()
    found = start(sampler)
    # Its index is a sample's seed: all differ, and those of a row stand together.
    assert sampler.asked == [(0, "a"), (1, "a"), (2, "b"), (3, "b"), (4, "c"), (5, "c")]
    table = pq.read_table(start.out)
    assert {name: table.schema.field(name).type for name in COLUMNS} == COLUMNS
    lines = table.to_pylist()
    assert [(line["row"], line["sample"], line["topic"]) for line in lines] == [
        (0, 0, "A"), (0, 1, "A"), (1, 0, "B"), (1, 1, "B"), (2, 0, "C"), (2, 1, "C"),
    ]  # fmt: skip
    assert [(line["response"], line["response_ids"], line["truncated"]) for line in lines[2:4]] == [
        ("en", [2, 1], False),
        ("e", [3], True),
    ]
    assert lines[3]["finish_reason"] == "length"
    assert found.arrays("rollout_logprobs")[2].tolist() == pytest.approx([-2.1, -0.2])
    assert lines[0]["teacher_messages"] == rows("a")[0]["teacher_messages"]
    read = Answers.read("data", str(start.out))
    assert (read.model, read.view, read.sampling) == (start.run.model, "student", SAMPLING)
    table = summary(found, {"rows": 6, "tokens_per_second": 12.0})
    cells = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert (cells["rows"], cells["samples"], cells["mean length (tokens)"]) == ("3", "6", "1.8")
    assert cells["truncated share"] == "0.167"


def test_the_teachers_view_and_a_limit(start):
    sampler = ScriptedSampler()
    found = start(sampler, view="teacher", n=1, limit=2)
    assert sampler.asked == [(0, "name it: a"), (1, "name it: b")]
    assert found.table.num_rows == 2


def test_an_interrupted_run_samples_only_what_is_missing(start):
    with pytest.raises(Interrupted):
        start(ScriptedSampler(chunks_before_interruption=2))
    assert not start.out.exists()
    rest = ScriptedSampler()
    interrupted = start(rest).table
    assert [index for index, _ in rest.asked] == [4, 5]
    ledger_file = start.out.with_name(ledger.FILE)
    assert sorted(start.out.parent.iterdir()) == [start.out, ledger_file]  # the journal is gone
    spent = ledger.read(ledger_file).entries  # the interrupted run's too
    assert [(each.phase, each.samples, each.tokens.sampled) for each in spent] == [
        ("generate", 4, 8),
        ("generate", 2, 4),
    ]
    again = ScriptedSampler()
    assert start(again).table.equals(interrupted)
    assert again.asked == []
    start.out.unlink()
    assert start(ScriptedSampler()).table.equals(interrupted)


def test_nothing_is_overwritten_silently(start):
    start(ScriptedSampler())
    with pytest.raises(ValueError, match=r"out=.*\(n, view\).*overwrite=true"):
        start(ScriptedSampler(), n=1, view="teacher")
    assert start(ScriptedSampler(), n=1, overwrite=True).table.num_rows == 3
    pq.write_table(pa.table({"x": [1]}), start.out)
    with pytest.raises(ValueError, match=r"out=.* holds no answers"):
        start(ScriptedSampler(), overwrite=True)


def test_refusals_name_the_key(start, tmp_path):
    start(ScriptedSampler())
    with pytest.raises(ValueError, match=r"data=.*has answers already \(column row\)"):
        start(ScriptedSampler(), data=str(start.out))
    with pytest.raises(ValueError, match=r"data=.*missing\.parquet: no such file"):
        Answers.read("data", str(tmp_path / "missing.parquet"))
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"data=.*text\.parquet is no parquet file"):
        Answers.read("data", str(tmp_path / "text.parquet"))
    with pytest.raises(ValueError, match=r"data=.*rows\.parquet holds no answers"):
        Answers.read("data", start.run.data)
    for key, value in (("view", "both"), ("n", 0), ("limit", -1), ("chunk", 0)):
        with pytest.raises(ValueError, match=f"{key}={value}"):
            GenerateConfig(**{"model": "m", "data": "d", key: value})


def test_the_verb_samples_as_training_does():
    with initialize(config_path=None, version_base=None):
        settings = settings_of(compose("generate", ["model=M", "data=D", "n=2"]), GenerateConfig)
        with pytest.raises(ConfigCompositionException, match="samples"):
            compose("generate", ["samples=2"])
    assert on_policy(settings.sampling)
    assert settings.sampling.template_kwargs == {}
    assert json.dumps(settings.sampling.stop) == "[]"
