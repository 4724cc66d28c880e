from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_student import ROW

from verl_ext.evaluation import arms
from verl_ext.evaluation.answers import Judged
from verl_ext.evaluation.arms import EvaluateConfig, Evaluated, is_math, judge, judge_answers, judge_math, show
from verl_ext.evaluation.labels import Z_95, Agreement, ClassRow, Proportion, accuracy_by, agreement, evaluate_answers
from verl_ext.evaluation.labels_report import ArmResult, languages_apart, plot_confusion, print_tables
from verl_ext.sampling.types import Answer

#         en en en en  de de de  fr
GOLD = ["en", "en", "en", "en", "de", "de", "de", "fr"]
GIVEN = ["en", "en", "de", "", "de", "de", "en", "de"]
LABELS = ("en", "de", "fr", "ot")


def test_confusion_and_classes_by_hand():
    result = evaluate_answers(GIVEN, GOLD, LABELS)
    assert result.confusion == (
        (2, 1, 0, 0, 1),  # en: two right, one as de, one invalid
        (1, 2, 0, 0, 0),
        (0, 1, 0, 0, 0),
        (0, 0, 0, 0, 0),
    )
    assert (result.accuracy.hits, result.accuracy.n, result.invalid.hits) == (4, 8, 1)
    en, de, fr, ot = result.classes
    assert (en.recall, en.precision, en.f1) == (2 / 4, 2 / 3, 4 / 7)
    assert (de.recall, de.precision, de.f1) == (2 / 3, 2 / 4, 4 / 7)
    assert (fr.recall, fr.precision, fr.f1) == (0.0, None, 0.0)
    assert ot == ClassRow("ot", 0, 0, 0)
    assert (ot.recall, ot.precision, ot.f1) == (None, None, None)
    assert result.macro_f1 == pytest.approx((4 / 7 + 4 / 7 + 0) / 3)  # `ot` does not occur


def test_as_dict_keeps_the_keys_that_others_read():
    report = evaluate_answers(GIVEN, GOLD, LABELS).as_dict()
    assert report["accuracy"] == 0.5
    assert report["rows"] == 8
    assert report["confusion"]["answered"] == (*LABELS, "invalid")
    assert [sum(row) for row in report["confusion"]["counts"]] == [4, 3, 1, 0]
    assert set(report["classes"][0]) == {"label", "n", "correct", "answered", "recall", "precision", "f1"}


def test_thirteen_classes_make_a_13_by_14_matrix():
    from verl_ext.data.rows import LABELS as TASK

    result = evaluate_answers(list(TASK), list(TASK), TASK)
    assert np.array(result.confusion).shape == (13, 14)
    assert result.macro_f1 == 1.0
    assert result.macro_f1_interval == (1.0, 1.0)


def test_macro_f1_interval():
    result = evaluate_answers(GIVEN * 50, GOLD * 50, LABELS)
    low, high = result.macro_f1_interval
    assert low < result.macro_f1 < high
    # The delta method gives a standard error of 0.01677 for these 400 rows; the bootstrap must be near it.
    assert (high - low) / (2 * Z_95) == pytest.approx(0.01677, rel=0.05)
    assert result.macro_f1_interval == evaluate_answers(GIVEN * 50, GOLD * 50, LABELS).macro_f1_interval


def test_wilson_interval():
    # Wilson 1927 for 8 of 10, 95 %: (0.4902, 0.9433)
    assert Proportion(8, 10).interval == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    low, high = Proportion(10, 10).interval
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.7224672, abs=1e-6)


def test_agreement_leaves_out_what_the_teacher_could_not_name():
    result = agreement(["en", "de", "", "fr"], ["en", "en", "de", ""])
    assert result.same == Proportion(1, 3)
    assert result.teacher_invalid == 1
    assert agreement(["en"], [""]).as_dict() == {"value": None, "rows": 0, "teacher_invalid": 1}


def test_accuracy_by_language():
    parts = accuracy_by(["bg", "ru", "bg"], ["ru", "en", "bg"], ["ru", "ru", "ru"])
    assert parts == {"bg": Proportion(1, 2), "ru": Proportion(0, 1)}


@pytest.mark.parametrize(
    ("answers", "gold", "message"),
    [(["en"], ["en", "de"], "1 answers for 2 rows"), ([], [], "at least 1"), (["en"], [""], "row 0: .* ''")],
)
def test_bad_input(answers, gold, message):
    with pytest.raises(ValueError, match=message):
        evaluate_answers(answers, gold, LABELS)


def judged_as(arm: str, read: str) -> Judged:
    return Judged(arm, 0, False, "", read, read, "", None, "stop", False, 1)


@pytest.fixture
def judged():
    """Two Russian rows, one of them Bulgarian, and two edge cases; the teacher names the first and one edge case."""
    config = EvaluateConfig(data="d", edge="e", base="b", teacher="t", student="s", labels=["en", "ot", "ru"])
    rows = [{"reward_model": {"ground_truth": "ru"}, "extra_info": {"language": language}} for language in ("bg", "ru")]
    given = {"base": ["", "en", "", ""], "teacher": ["ru", "en", "", "ot"], "student": ["ru", "ru", "en", "ot"]}
    return judge(config, {arm: [judged_as(arm, read) for read in labels] for arm, labels in given.items()}, rows)


def test_gold_and_agreement_are_apart(judged):
    assert {arm: result.gold.accuracy.hits for arm, result in judged.items()} == {"base": 0, "teacher": 1, "student": 2}
    student = judged["student"]
    assert student.languages == {"bg": Proportion(1, 1), "ru": Proportion(1, 1)}
    assert languages_apart(student) == ["bg", "ru"]
    assert student.agreement == Agreement(Proportion(1, 2), 0)  # right where the teacher is wrong
    assert student.edge == Agreement(Proportion(1, 1), 1)
    assert judged["teacher"].agreement is None
    assert [result.sees_prompt for result in judged.values()] == [False, True, False]


def test_report_and_picture(judged, tmp_path, capsys):
    print_tables(judged)
    printed = capsys.readouterr().out
    assert "1.000 (0.342-1.000)" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    plot_confusion(judged, tmp_path / "eval.png")
    assert (tmp_path / "eval.png").read_bytes().startswith(b"\x89PNG")
    student = judged["student"].as_dict()
    assert (student["accuracy"], student["agreement_with_teacher"]["value"]) == (1.0, 0.5)
    assert student["edge_agreement_with_teacher"]["teacher_invalid"] == 1


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"limit": -1}, "limit"),
        ({"extract": "regex"}, "extract"),
        ({"extract_prompted": "regex"}, "extract_prompted"),
        ({"edge": "edge.parquet"}, "edge"),
    ],
)
def test_an_error_names_the_key(settings, key):
    with pytest.raises(ValueError, match=f"^{key}"):
        EvaluateConfig(**settings)


ASKED = [{"role": "user", "content": "How much?"}]
PROBLEMS = [
    {
        "row": row,
        "reward_model": {"ground_truth": truth},
        "data_source": "math",
        "prompt": ASKED,
        "teacher_messages": ASKED,
    }
    for row, truth in enumerate(("43", "\\frac{3}{4}", "7"))
]


def judged_problems(config: EvaluateConfig, said: dict[str, list[Answer]]) -> dict[str, list[Judged]]:
    return {arm: judge_answers(config, arm, answers, PROBLEMS, problems=True) for arm, answers in said.items()}


def test_problems_are_scored_by_the_last_box():
    config = EvaluateConfig(data="d", base="b", teacher="t")
    said = {
        "base": [Answer("43", 1, "stop"), Answer("\\boxed{", 16, "length"), Answer("\\boxed{8}", 4, "stop")],
        "teacher": [Answer("\\boxed{43}", 3, "stop"), Answer("\\boxed{0.75}", 6, "stop"), Answer("7", 0, "length")],
    }
    answers = judged_problems(config, said)
    results = judge_math(config, answers, PROBLEMS)
    base, teacher = results["base"], results["teacher"]
    assert (base.accuracy, base.truncated, base.unboxed) == (Proportion(0, 3), Proportion(1, 3), Proportion(2, 3))
    assert (teacher.accuracy.hits, teacher.truncated.hits, teacher.unboxed.hits, teacher.mean_tokens) == (2, 1, 1, 3.0)
    report = teacher.as_dict()
    assert report["accuracy"] == 2 / 3
    assert report["accuracy_interval_95"] == Proportion(2, 3).interval
    assert (report["model"], report["rows"]) == ("t", 3)
    assert base.sees_prompt  # the teacher's is its own
    apart = [row | {"teacher_messages": [{"role": "user", "content": "more"}]} for row in PROBLEMS]
    assert not judge_math(config, answers, apart)["base"].sees_prompt


def test_the_table_of_problems_fits_80_columns_and_there_is_no_picture(tmp_path, capsys):
    config = EvaluateConfig(data="d", base_prompted="b")
    answers = judged_problems(config, {"base_prompted": [Answer("\\boxed{7}", 4096, "length")] * 3})
    found = Evaluated(judge_math(config, answers, PROBLEMS), answers)
    assert show(found, tmp_path / "eval.json") == f" and {tmp_path}/answers.jsonl"
    printed = capsys.readouterr().out
    assert "row 0: right '43', read '7', cut off: \\boxed{7}" in printed
    assert "0.333 (0.061-0.792)" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("policy", "right"), [("strict", 3), ("exact", 1)])
def test_labels_are_those_of_the_rows_and_read_as_the_policy_says(tmp_path, capsys, policy, right):
    rows = [ROW | {"reward_model": {"style": "rule", "ground_truth": label}} for label in ("C++", "C", "non-toxic")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    said = [Answer(text, 1, "stop") for text in ("**C++**", "C", "<think>toxic</think> Non-toxic.")]

    def ask(*_) -> dict[str, list[Answer]]:
        return {"base": said}

    paths = {"data": str(tmp_path / "rows.parquet"), "out": str(tmp_path / "eval.json")}
    config = EvaluateConfig(base="b", policy=policy, **paths)
    result = arms.evaluate(config, ask).results["base"]
    assert isinstance(result, ArmResult)
    assert result.gold.labels == ("C", "C++", "non-toxic")
    assert result.gold.accuracy.hits == right
    arms.evaluate(replace(config, labels=["C", "C++", "non-toxic", "toxic"]), ask)
    assert "warning: no row has the label toxic" in capsys.readouterr().out


def test_one_task_a_file():
    labelled = {"reward_model": {"ground_truth": "ru"}, "data_source": "language_id"}
    assert is_math(EvaluateConfig(data="d"), PROBLEMS)
    assert not is_math(EvaluateConfig(data="d"), [labelled])
    with pytest.raises(ValueError, match="data=d: data_source is math and language_id"):
        is_math(EvaluateConfig(data="d"), [*PROBLEMS, labelled])
    with pytest.raises(ValueError, match=r"^edge=e"):
        is_math(EvaluateConfig(data="d", edge="e", teacher="t"), PROBLEMS)
    with pytest.raises(ValueError, match="labels: d also has 43"):
        is_math(EvaluateConfig(data="d", labels=["ru"]), [PROBLEMS[0] | {"data_source": "other"}])
