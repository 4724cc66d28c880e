import pytest

from verl_ext.evaluation import Proportion, evaluate_answers


def test_strict_match_invalid_and_classes():
    result = evaluate_answers(["en", " de\n", "en", "English", "fr"], ["en", "de", "de", "en", "en"])
    assert (result.accuracy.hits, result.accuracy.n) == (2, 5)
    assert result.invalid.hits == 2  # "English", and "fr", which is no label here
    assert [(row.label, row.n, row.correct, row.answered) for row in result.classes] == [
        ("de", 2, 1, 1),
        ("en", 3, 1, 2),
    ]
    assert result.classes[0].precision == 1.0
    assert result.classes[1].recall == pytest.approx(1 / 3)


def test_wilson_interval():
    # Wilson 1927 for 8 of 10, 95 %: (0.4902, 0.9433)
    assert Proportion(8, 10).interval == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    low, high = Proportion(10, 10).interval
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.7224672, abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "labels", "message"),
    [(["en"], ["en", "de"], "1 answers for 2 labels"), ([], [], "at least 1"), (["en"], [""], "row 0 has no label")],
)
def test_bad_input(answers, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate_answers(answers, labels)
