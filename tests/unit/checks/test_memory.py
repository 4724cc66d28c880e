"""The plan as a check of the driver and the doctor: what it refuses, what it lets pass, what it says."""

import pytest
from omegaconf import OmegaConf

from verl_ext.checks.context import context_of_run
from verl_ext.checks.finding import Finding
from verl_ext.checks.memory import check_plan
from verl_ext.checks.run import check, look

FITS = ("student.path=Qwen/Qwen3-4B-Instruct-2507", "model=qwen3_4b_from_30b", "hardware=gb10_128gb", "update=lora")


def planned(config) -> Finding:
    """What the doctor says about the plan."""
    return next(finding for finding in look(context_of_run(config)) if finding.name == "memory plan")


def test_a_run_that_fits_says_what_stays_free(compose_run):
    line = check_plan(compose_run(*FITS, "teacher=fp8"))
    assert line.startswith("fits GB10: ")
    assert "in load" in line
    assert planned(compose_run(*FITS, "teacher=fp8")).verdict == "ok"


def test_the_driver_refuses_before_it_looks_at_any_file(compose_run):
    config = compose_run(*FITS, "teacher=bf16")  # 57 GiB of teacher in 0.3 of 119.6
    with pytest.raises(
        ValueError, match=r"on GB10 teacher.mem_fraction_static=0.3: leaves .*; this change alone .*: \S+"
    ):
        check(config)
    finding = planned(config)
    assert (finding.verdict, finding.fix[:17]) == ("fail", "this change alone")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("student.path=MODEL",), "no hardware=NAME"),
        (("student.path=MODEL", "hardware=cpu"), "student.path=MODEL: no such folder"),
        ((*FITS, "+teachers.a.port=1"), "one teacher"),
    ],
)
def test_what_cannot_be_planned_is_said_and_runs(compose_run, words, reason):
    line = check_plan(compose_run(*words))
    assert line.startswith("memory is not planned: ")
    assert reason in line


def test_a_machine_without_the_devices_is_refused_with_the_key(compose_run):
    config = compose_run(*FITS, "teacher=fp8", "trainer.n_gpus_per_node=2")
    OmegaConf.resolve(config)
    with pytest.raises(ValueError, match=r"trainer.n_gpus_per_node=2: GB10 has 1 nodes of 1"):
        check_plan(config)
