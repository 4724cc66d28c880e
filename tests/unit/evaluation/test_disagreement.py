"""Scores of sampled answers: the numbers, the disagreements, samples without a score, and that the store suffices."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from rich.console import Console
from tokenizers import Tokenizer, models

from recipe.score import ScoreConfig
from verl_ext.evaluation.disagreement import Disagreement, Scoring, largest, score_answers, with_teachers_choice
from verl_ext.evaluation.disagreement_report import METADATA, disagreement_table, in_context, summary, with_scores
from verl_ext.run.settings import settings_of
from verl_ext.sampling.answers import Answers, table_of
from verl_ext.sampling.types import Sample
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.store.format import score_key
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherUnavailableError

WORDS = ["<|im_end|>", "en", "de", "it", "is", "good"]
TOOK = {"rows": 4, "tokens": 40, "seconds": 2.0, "tokens_per_second": 20.0}
ROLLOUT = [np.array([-1.0, -0.5], np.float32), np.array([-0.25], np.float32), np.array([-2.0, -0.5, 0.0], np.float32)]
#          KL: 7, 0                              unscored                       0.5, -0.25, 7
TEACHER = [np.array([-8.0, -0.5], np.float32), None, np.array([-2.5, -0.25, -7.0], np.float32)]
OUTCOMES = [TeacherUnavailableError("gone") if one is None else Score(one) for one in TEACHER]
TEMPERATURE_1 = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "stop": [], "enable_thinking": None}


class Words:
    """A tokenizer of whole words; its template is the words of the last message."""

    added_tokens_decoder = MappingProxyType({})
    """No special tokens."""

    def __init__(self) -> None:
        self.core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))

    def apply_chat_template(self, messages, **_) -> list[int]:
        return [WORDS.index(word) for word in messages[-1]["content"].split()]

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return self.core.decode(ids, skip_special_tokens)


def answers_of(*responses: Sequence[int], **sampling) -> Answers:
    rows = pa.Table.from_pylist(
        [
            {
                "prompt": [{"role": "user", "content": "it\nis"}],
                "teacher_messages": [{"role": "user", "content": "it is good"}],
            }
        ]
    )
    logprobs = [one[: len(ids)].tolist() for one, ids in zip(ROLLOUT, responses, strict=True)]
    samples = [Sample("", len(ids), "stop", list(ids), own) for ids, own in zip(responses, logprobs, strict=True)]
    settings = {"view": "student", "n": len(responses), "sampling": TEMPERATURE_1 | sampling}
    return Answers(table_of(rows, samples, len(responses)), "MODEL", settings)


ANSWERS = ([1, 0], [2], [2, 4, 0])


def scoring(found: Sequence[Disagreement] = ()) -> Scoring:
    return Scoring(ROLLOUT, OUTCOMES, found, TOOK, 0)


def printed(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_numbers_by_hand():
    found = scoring()
    assert found.teacher_kl == pytest.approx((7 + 0 + 0.5 - 0.25 + 7) / 5)
    assert found.teacher_logprob == pytest.approx(-(8 + 0.5 + 2.5 + 0.25 + 7) / 5)
    assert found.never_share == pytest.approx(2 / 5)  # ln(1e-3) = -6.9
    assert (len(found.scored), len(found.errors), found.from_store) == (2, 1, 0)
    nothing = Scoring(ROLLOUT[:1], OUTCOMES[1:2], (), TOOK, 0)
    assert np.isnan(nothing.teacher_kl)


REQUESTS = [ScoreRequest([3, 4, 5], ids) for ids in ANSWERS]


def test_the_largest_reverse_kl_first_and_of_equal_ones_the_first_in_the_file():
    found = largest(REQUESTS, ROLLOUT, OUTCOMES, 3)
    assert [(one.index, one.position, one.reverse_kl) for one in found] == [(0, 0, 7.0), (2, 2, 7.0), (2, 0, 0.5)]
    assert [one.index for one in largest(REQUESTS, ROLLOUT, OUTCOMES, 99)] == [0, 2, 2, 0, 2]
    assert largest(REQUESTS, ROLLOUT, OUTCOMES, 0) == []
    assert largest(REQUESTS[:1], [np.zeros(0, np.float32)], [Score(np.zeros(0, np.float32))], 3) == []


def test_the_same_token_in_the_same_place_counts_once():
    requests = [ScoreRequest([3], [1, 0]), ScoreRequest([3], [1, 2]), ScoreRequest([4], [1, 0])]
    rollout = [np.array([-1.0, -0.5], np.float32)] * 3
    teacher = [Score(np.array([-8.0, -1.0], np.float32))] * 3
    found = largest(requests, rollout, teacher, 9)
    # `en` after prompt 3, twice; after prompt 4; then what follows it, in each sample another place.
    assert [(one.index, one.position, one.times) for one in found] == [
        (0, 0, 2),
        (2, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
        (2, 1, 1),
    ]


class TopScorer:
    """Knows the most likely token of one position."""

    def __init__(self, outcome: Score | TeacherError) -> None:
        self.outcome = outcome
        self.seen: list[ScoreRequest] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        self.seen += requests
        return [self.outcome for _ in requests]

    async def prime(self, request: ScoreRequest) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


async def test_the_teachers_choice_is_asked_at_that_position_alone():
    (worst,) = largest(REQUESTS, ROLLOUT, OUTCOMES, 1)
    top = Score(np.array([-8.0, 0.0]), np.array([[2], [0]]), np.array([[-0.01], [0.0]]))
    scorer = TopScorer(top)
    (found,) = await with_teachers_choice(scorer, REQUESTS, [worst])
    assert (found.teachers_id, found.teachers_logprob) == (2, -0.01)
    assert scorer.seen == [ScoreRequest([3, 4, 5], [1, 0], [1, 0], top_k=1)]
    (unknown,) = await with_teachers_choice(TopScorer(TeacherUnavailableError("gone")), REQUESTS, [worst])
    assert unknown == worst


def test_a_token_is_shown_in_its_text():
    messages = [{"role": "user", "content": "it\nis"}]
    assert in_context(messages, [2, 4, 0], 1, Words()).plain == "it\\nis → de[is]<|im_end|>"
    long = in_context([{"role": "user", "content": "x" * 50}], [3] * 40, 20, Words()).plain
    assert long == "..." + "x" * 40 + " → ..." + ("it " * 20)[-41:-1] + "[it]" + ("it " * 20)[:20] + "..."
    found = [Disagreement(0, 0, -1.0, -8.0, 3, 2, -0.01), Disagreement(2, 2, 0.0, -7.0)]
    text = printed(disagreement_table(answers_of(*ANSWERS), found, Words()))
    assert "7.00" in text
    assert "de 0.990" in text
    assert "3e-04" in text  # exp(-8)
    assert "de is[<|im_end|>]" in text


def test_unscored_samples_are_kept_with_nulls(tmp_path):
    answers, teacher = answers_of(*ANSWERS), TeacherConfig(model_path="TEACHER")
    table = with_scores(answers.table, scoring(), teacher)
    assert table["teacher_logprobs"].to_pylist() == [None if one is None else one.tolist() for one in TEACHER]
    assert table["teacher_error"].to_pylist() == [None, "gone", None]
    assert table["response_ids"].to_pylist() == [list(ids) for ids in ANSWERS]
    again = with_scores(table, Scoring(ROLLOUT, OUTCOMES[::-1], (), TOOK, 0), teacher)
    assert again.column_names == table.column_names
    assert again["teacher_error"].to_pylist() == [None, "gone", None]
    Answers(again, answers.model, answers.settings).write(tmp_path / "scored.parquet")
    assert Answers.read("data", str(tmp_path / "scored.parquet")).settings == answers.settings
    assert b'"model_path": "TEACHER"' in pq.read_schema(tmp_path / "scored.parquet").metadata[METADATA]
    text = printed(summary(answers, scoring(), "TEACHER"))
    assert "2, 1" in text
    assert "+2.85" in text


@pytest.mark.parametrize("sampling", [{"temperature": 0.15}, {"top_p": 0.9}, {"top_k": 20}])
def test_no_kl_of_samples_from_another_distribution(sampling):
    text = printed(summary(answers_of(*ANSWERS, **sampling), scoring(), "TEACHER"))
    assert "+2.85" not in text
    ((key, value),) = sampling.items()
    assert f"{key} {value}" in text


def test_what_the_store_holds_is_not_asked_again(tmp_path):
    """No server runs at that URL: everything comes from the store, as a training run would find it."""
    teacher = TeacherConfig(
        mode="external", urls=["http://127.0.0.1:9"], model_path="M", fingerprint="f", store_path=str(tmp_path)
    )
    answers = answers_of(*ANSWERS)
    store = ScoreStore(tmp_path, 1 << 30)
    wanted = [Score(np.arange(len(ids), dtype=np.float32) - 3) for ids in ANSWERS]
    # As the agent loop asks: the teacher's prompt, and a mask of ones.
    asked = [ScoreRequest([3, 4, 5], ids, [1] * len(ids)) for ids in ANSWERS]
    store.put_many({score_key("f", request): score for request, score in zip(asked, wanted, strict=True)})
    store.close()
    found = score_answers(answers, teacher, Words(), 2, tmp_path / "teacher.log")
    scores = [outcome for outcome in found.outcomes if isinstance(outcome, Score)]
    assert [score.logprobs.tolist() for score in scores] == [score.logprobs.tolist() for score in wanted]
    assert (found.from_store, found.took["tokens"]) == (3, 0)
    assert [one.teachers_id for one in found.disagreements] == [None, None]
    assert not (tmp_path / "teacher.log").exists()


def test_replay_never_asks(tmp_path):
    teacher = TeacherConfig(model_path="M", fingerprint="f", store_path=str(tmp_path), store_mode="replay")
    found = score_answers(answers_of(*ANSWERS), teacher, Words(), 2, tmp_path / "teacher.log")
    assert len(found.errors) == 3
    assert "store_mode=replay" in str(found.errors[0])


def test_settings_of_the_verb():
    configs = str(Path(__file__).parents[3] / "configs")
    with initialize_config_dir(configs, version_base=None):
        config = compose("score", ["data=d", "teacher=fp8", "teacher.model_path=T", "teacher.max_retries=1"])
        teacher = settings_of(config, ScoreConfig).teacher
        assert (teacher.quantization, teacher.device, teacher.max_retries) == ("fp8", "cuda", 1)
        with pytest.raises(ValueError, match=r"teacher\.model_path: missing"):
            settings_of(compose("score", ["data=d"]), ScoreConfig)
        with pytest.raises(ValueError, match="disagreements=-1"):
            settings_of(compose("score", ["data=d", "teacher.model_path=T", "disagreements=-1"]), ScoreConfig)
        for unknown in ("teacher.ulrs=[x]", "tacher=fp8"):
            with pytest.raises(ConfigCompositionException, match=unknown.split("=")[0].rpartition(".")[2]):
                compose("score", [unknown])
