"""The math verifier: what is the same answer, by kind (math_cases.json: answer, truth, 1 if it is the same), what of a
response is the answer, and that no pair can stop it."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verl_ext.data.sentences import file_sentences
from verl_ext.evaluation.match import boxed_answer, math_match, verifier
from verl_ext.evaluation.mathematics import equality
from verl_ext.evaluation.mathematics.equality import same_answer
from verl_ext.evaluation.mathematics.verifier import in_a_fork

ROOT = Path(__file__).parents[3]
KINDS = json.loads((Path(__file__).parent / "math_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_truth_where_it_is_the_same_mathematics(kind):
    wrong = [pair for pair in KINDS[kind] if same_answer(*pair[:2]) != bool(pair[2])]
    assert not wrong


NUMBERS = (
    "0 1e-30 1e-31 "
    "1.6\\times10^{-19} 6.63e-34 0.3333 \\frac13 0.333333333333 \\frac{33}{100} 1 1.0000001 -1 \\pi 3.14159 "
    "\\frac{22}{7} e 2.71828 \\sqrt2 1.41421356 \\frac{1}{2^{50}} \\frac{1}{2^{51}} 2^{100} 2^{100}+1 100! 99! "
    "123456789012345678 123456789012345679 i -i 1+i \\infty -\\infty \\ln2 \\log_{10}2 x 2x x^2 y x+1 |x|"
)


def test_neighbouring_numbers_are_never_the_same():
    assert not [pair for pair in itertools.combinations(NUMBERS.split(), 2) if same_answer(*pair)]


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        ("So it is $\\boxed{43}$.", "43", 1.0),
        ("\\boxed{1} no, \\boxed{43}", "43", 1.0),
        ("In \\boxed form: $\\boxed{43}$", "43", 1.0),
        ("\\fbox{43}", "43", 1.0),
        ("\\boxed {43}", "43", 1.0),
        ("\\\\boxed{43}", "43", 1.0),
        ("$\\boxed 43$", "43", 1.0),
        ("\\boxed{\\boxed{43}}", "43", 1.0),
        ("\\boxed{43} is it. I put it in \\boxed{}.", "43", 1.0),
        ("\\boxed{1} and \\boxed{2}", "1,2", 1.0),
        ("$x=\\boxed{1}$, $y=\\boxed{2}$", "1,2", 1.0),
        ("<think>\\boxed{3}</think>\\boxed{43}", "43", 1.0),
        ("\\boxed{3}</think>\\boxed{43}", "43", 1.0),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right.", 1.0),
        ("\\boxed{0.5}", "#### \\frac12\n", 1.0),
        ("\\boxed{0.5}", "Half: $\\boxed{\\frac12}$", 1.0),
        ("<think>\\boxed{43}", "43", 0.0),
        ("<think>\\boxed{43}</think> So.", "43", 0.0),
        ("\\boxed{43} or \\boxed{44}", "43", 0.0),
        ("\\boxed{\\boxed{43} + 1}", "43", 0.0),
        ("\\boxed 43x", "43", 0.0),
        ("\\boxed{43} no, \\boxed{4", "43", 0.0),
        ("43", "43", 0.0),
        ("The answer is 43.", "43", 0.0),
        ("Put it in \\boxed{}: 43", "43", 0.0),
        ("\\boxed{}", "43", 0.0),
        ("\\boxed{}", "", 0.0),
        ("\\boxed{\\text{ }}", "\\text{ }", 0.0),
        ("", "43", 0.0),
    ],
)
def test_the_last_box_behind_all_thinking_is_the_answer(response, truth, expected):
    assert math_match(response, truth) == expected


@pytest.mark.parametrize(
    "response",
    ["{", "}", "\\boxed{", "\\boxed{}", "<think>", "</think>", "\\fbox ", "\\\\", "$", "\0", "\ud800", "\\text{"],
)
def test_a_response_of_megabytes_of_garbage_has_no_answer(response):
    assert math_match(response * (1_000_000 // len(response)), "5") == 0.0
    assert math_match(f"{response * 10_000}\\boxed{{{response * 300}}}", "5") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^9}}",
        "(10^{9})!",
        "\\lfloor 10^{10^{6}}\\pi\\rfloor",
        "1e999999999",
        "((((3!)!)!)!)!",
        "(" * 300,
        "x^{" * 6 + "2" + "}" * 6,
        "\\pm" * 600,
        "__import__('os').abort()",
        "\\text{__import__('os').abort()}",
    ],
)
def test_what_cannot_be_worked_out_is_wrong_at_once_unless_it_is_written_the_same(answer):
    before = verifier.pid
    assert math_match(f"\\boxed{{{answer}}}", "43") == 0.0
    assert math_match(f"\\boxed{{{answer}}}", answer) == 1.0
    assert verifier.pid == before or before is None


def test_a_comparison_that_does_not_end_is_given_up_and_nothing_starts_again(monkeypatch, capfd):
    assert math_match("\\boxed{x+x}", "2x") == 1.0
    before = verifier.pid
    with monkeypatch.context() as patched:
        patched.setattr(verifier, "timeout_s", 0.3)
        assert math_match("\\boxed{\\binom{1000000000}{500000000}}", "3") == 0.0  # hours, in C
    assert "gave up on '\\\\binom{1000000000}{500000000}' after 0.3 s" in capfd.readouterr().out
    assert math_match("\\boxed{x+x}", "2x") == 1.0
    assert verifier.pid == before


def test_a_verifier_that_was_killed_costs_one_pair_at_most():
    assert math_match("\\boxed{x+x}", "2x") == 1.0
    assert verifier.pid is not None
    os.kill(verifier.pid, signal.SIGKILL)
    assert [math_match("\\boxed{x+x}", "2x") for _ in range(2)][-1] == 1.0


def test_an_error_of_the_comparison_is_told_of_and_counts_as_wrong(monkeypatch, capsys):
    def broken(*_pair: str) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(equality, "same_answer", broken)  # the fork has it too
    assert in_a_fork("x+x", "2x", 5.0) == "ZeroDivisionError"
    monkeypatch.setattr(verifier, "_ask", lambda pair: in_a_fork(pair["answer"], pair["truth"], 5.0))
    assert math_match("\\boxed{x+x}", "2x") == 0.0
    assert "math: ZeroDivisionError over 'x+x'; it counts as wrong" in capsys.readouterr().out


def test_threads_may_compare():
    pairs = [("\\boxed{x+x}", "2x"), ("\\boxed{x+x}", "3x")] * 4
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(math_match, *zip(*pairs, strict=True))) == [1.0, 0.0] * 4


def test_a_fork_has_a_verifier_of_its_own():
    assert math_match("\\boxed{x+x}", "2x") == 1.0
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(math_match, ("\\boxed{x+x}", "2x")) == 1.0
    assert math_match("\\boxed{x+x}", "2x") == 1.0


def test_a_plain_script_may_compare_without_a_guard(tmp_path):
    script = "from verl_ext.evaluation.match import math_match\nprint(math_match('\\\\boxed{x+x}', '2x'))\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert (run.stdout, run.stderr) == ("1.0\n", "")


def test_every_sample_has_an_answer_that_its_own_solution_matches():
    problems = file_sentences(ROOT / "data" / "math_sample.jsonl")
    assert len(problems) == len({problem.text for problem in problems}) == 20
    assert all(math_match(f"So it is \\boxed{{{problem.label}}}.", problem.label) == 1.0 for problem in problems)


def test_the_answer_is_shown_as_it_was_boxed():
    assert boxed_answer("\\boxed{1} and \\boxed{\\frac{1}{2}}") == "1, \\frac{1}{2}"
    assert boxed_answer("1") is None
