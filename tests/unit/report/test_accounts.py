"""The costs of a comparison on its page: both accountings, seeds that did not get there, a first training, labels."""

import json
import shutil

import pytest
from reported import entry, write_lines

from verl_ext.comparison.accounting import FREE, PAID
from verl_ext.comparison.prices import Prices, TokenPrices
from verl_ext.report.accounts import costs_to_target
from verl_ext.report.arms import Comparison, read_comparison
from verl_ext.report.blocks import Missing, Table
from verl_ext.report.verdict import answer

DATA_FREE, DATA_PAID = "Data free", "Data paid"


def table(found: Comparison, start: str, words: str, prices: Prices | None = None) -> dict[str, dict[str, str]]:
    """Arm -> column -> cell of one table."""
    (one,) = (
        block
        for block in costs_to_target(found, prices)
        if isinstance(block, Table) and block.caption.startswith(start) and words in block.caption
    )
    return {row[0]: dict(zip(one.columns, row, strict=True)) for row in one.rows}


@pytest.fixture
def changed(comparison, tmp_path):
    """A copy of the comparison, to be changed."""
    shutil.copytree(comparison, tmp_path / "out")
    return tmp_path / "out"


def test_the_cost_of_the_target_is_that_of_its_first_validation(comparison):
    found = read_comparison(comparison)
    costs = table(found, DATA_FREE, "cost of 0.882")
    (run,) = (arm for arm in found.arms if arm.name == "on-policy")
    points = [each.to(0.882) for each in run.runs]
    assert [point.step for point in points if point] == [4, 4, 4]
    assert costs["on-policy"]["samples"] == "512"
    assert costs["on-policy"]["reached by"] == "3 of 3"
    of_seeds = [4 * 3.4 * (1 + 0.6 * (1 + 0.1 * seed)) for seed in range(3)]
    assert costs["on-policy"]["seconds"].startswith(f"{sum(of_seeds) / 3:.1f} (")
    assert costs["shuffled teacher"]["samples"] == "not reached"


def test_labels_are_paid_for_by_those_who_are_taught_by_them(comparison):
    found = read_comparison(comparison)
    free, paid = (table(found, start, ": cost of") for start in (DATA_FREE, DATA_PAID))
    assert free["on-policy"] == paid["on-policy"]
    assert free["sft (tinker)"]["samples"] == "2,048"
    assert paid["sft (tinker)"]["samples"] == "2,176"
    (both,) = (arm for arm in found.arms if arm.kind == "sft_then_on_policy")
    (run,) = both.runs
    point = run.points[1]
    extra = [run.spent(point, "seconds", each) for each in (FREE, PAID)]
    assert extra[1] - extra[0] == pytest.approx(34.0)
    own = [run.spent(run.points[at], "seconds", FREE) for at in (1, 2)]
    assert own[0] == pytest.approx(4 * 3.4 * 1.4)  # the four steps of SFT, none of its own yet
    assert own[1] == pytest.approx(own[0] + 4 * 3.4 * 1.7)


def test_labels_are_paid_for_in_a_folder_that_was_moved_and_not_free_where_nobody_knows(comparison, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(comparison, moved)
    for file in moved.glob("*/config.yaml"):
        file.write_text(file.read_text().replace(str(comparison), str(tmp_path / "gone")))
    assert table(read_comparison(moved), DATA_PAID, ": cost of")["sft (tinker)"]["samples"] == "2,176"
    (moved / "data/ledger.jsonl").unlink()
    paid, free = (table(read_comparison(moved), start, ": cost of") for start in (DATA_PAID, DATA_FREE))
    assert paid["sft (tinker)"]["samples"] == "not known"
    assert paid["on-policy"] == free["on-policy"]
    assert free["sft (tinker)"]["samples"] == "2,048"


def test_ratios_are_to_the_first_sft_arm_and_a_bound_where_an_arm_did_not_get_there(comparison):
    ratios = table(read_comparison(comparison), DATA_FREE, "times the cost of sft (tinker)")
    assert list(ratios) == ["on-policy", "sft then on-policy", "shuffled teacher"]
    assert ratios["on-policy"]["samples"] == "0.25"
    assert ratios["shuffled teacher"]["samples"] == "≥ 1"
    low, high = (0.25 * (1 + 0.6) / (1 + 0.2), 0.25 * (1 + 0.66) / (1 + 0.22))
    mean = (low * high) ** 0.5
    assert ratios["on-policy"]["FLOPs"].startswith(f"{mean:.3f} (")


def test_money_is_at_the_prices_that_are_stated(comparison):
    prices = Prices(student=TokenPrices(1.0, 1.0, 0.0, 1.0, 1.0), teacher=TokenPrices(2.0, 2.0, 0.0, 2.0, 2.0))
    costs = table(read_comparison(comparison), DATA_FREE, ": cost of", prices)
    assert costs["on-policy"]["money, hosted"] == "0.084"  # 4 steps: 3 + 9 + 3 thousand tokens at 1, 3 at 2
    assert costs["on-policy"]["money, rented"] == "not known"
    assert "money, hosted" not in table(read_comparison(comparison), DATA_FREE, ": cost of")["on-policy"]


def test_a_run_without_a_ledger_is_named_and_in_no_mean(changed):
    (changed / "arm1-2/ledger.jsonl").unlink()
    found = read_comparison(changed)
    (missing,) = (block for block in costs_to_target(found, None) if isinstance(block, Missing))
    assert (missing.what, missing.keep) == ("1 run without a ledger or a validation", "arm1-2")
    assert table(found, DATA_FREE, ": cost of")["on-policy"]["reached by"] == "2 of 2"


def test_flops_that_nobody_knows_are_not_zero(changed):
    lines = [{**entry("train", step, 1.6), "flops": None} for step in range(1, 17)]
    write_lines(changed / "arm1-0/ledger.jsonl", lines)
    costs = table(read_comparison(changed), DATA_FREE, ": cost of")
    assert costs["on-policy"]["FLOPs"] == "not known"
    assert costs["on-policy"]["samples"] == "512"


def test_an_arm_of_which_a_seed_did_not_get_there_has_no_mean(changed):
    rows = [json.loads(line) for line in (changed / "arm1-1/accuracy.jsonl").read_text().splitlines()]
    write_lines(changed / "arm1-1/accuracy.jsonl", [row | {"accuracy": 0.5} for row in rows])
    found = read_comparison(changed)
    costs = table(found, DATA_FREE, ": cost of")["on-policy"]
    assert (costs["reached by"], costs["samples"]) == ("2 of 3", "512 at best")
    assert table(found, DATA_FREE, "times the cost of")["on-policy"]["samples"] == "≥ 0.5"


def test_before_the_headroom_is_known_nothing_is_reached(changed):
    record = json.loads((changed / "comparison.json").read_text())
    (changed / "comparison.json").write_text(json.dumps(record | {"headroom": None, "arms": []}))
    found = read_comparison(changed)
    (missing,) = costs_to_target(found, None)
    assert isinstance(missing, Missing)
    assert answer(found)[0].text == "No arm has a result yet."


def test_the_answer_names_the_fewest_samples_and_how_sure_it_is(comparison):
    text = answer(read_comparison(comparison))[0].text
    assert text.startswith("sft then on-policy ends best, at 0.963 held-out accuracy (one seed); next is on-policy")
    assert "by too few seeds to be sure" in text
    assert "on-policy needed the fewest samples to 0.882 (90% of the teacher's accuracy): 512;" in text
    assert "In FLOP it took 0.337 times" in text


@pytest.mark.parametrize("status", ["failed", "running"])
def test_a_run_that_is_not_done_has_no_part_in_what_its_arm_reached(changed, status):
    record = json.loads((changed / "comparison.json").read_text())
    (third,) = (arm for arm in record["arms"] if (arm["arm"], arm["seed"]) == ("on-policy", 2))
    third |= {"status": status, "error": "the machine went away"}
    (changed / "comparison.json").write_text(json.dumps(record))
    words = " ".join(str(block) for block in answer(read_comparison(changed)))
    assert "on-policy with 0.950 (2 seeds" in words
