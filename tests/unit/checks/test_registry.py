"""The list of checks itself: its order, its table in the documentation, and what reading it costs."""

import subprocess
import sys

from verl_ext.checks.check import DOCTOR, TRAIN, VERBS, Cost
from verl_ext.checks.registry import CHECKS, checks_of, checks_table
from verl_ext.checks.run import CHEAP


def test_the_table_of_the_documentation_is_the_list(pytestconfig):
    assert checks_table() in (pytestconfig.rootpath / "docs" / "doctor.md").read_text()


def test_the_list_is_in_order():
    """Training has no cheap check that the doctor lacks; every need is an earlier check of the same commands."""
    assert checks_of(TRAIN, *CHEAP) == checks_of(DOCTOR, *CHEAP)
    assert checks_of(TRAIN, Cost.NEEDS_ENGINES) == []
    names = [one.name for one in CHECKS]
    assert len(names) == len(set(names))
    for place, one in enumerate(CHECKS):
        assert one.verbs
        assert set(one.verbs) <= set(VERBS)
        assert set(one.needs) <= set(names[:place]), one.name
    for verb in VERBS:
        costs = [list(Cost).index(one.cost) for one in checks_of(verb, *Cost)]
        assert costs == sorted(costs), verb


def test_the_list_is_read_without_torch_and_verl(pytestconfig):
    """A refusal, and every `--help`, would wait for their import."""
    code = "import sys, verl_ext.checks.diagnose; print([m for m in ('torch', 'verl', 'vllm') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
