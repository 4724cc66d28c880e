import pytest

from verl_ext.trainer.replay.config import ReplayConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.0}, r"replay.share=1.0 must be in \[0, 1\)"),
        ({"share": -0.1}, r"replay.share=-0.1 must be in \[0, 1\)"),
        ({"share": float("nan")}, "replay.share=nan"),
        ({"capacity_tokens": 0}, "replay.capacity_tokens=0 must be >= 1"),
        ({"capacity_bytes": 0}, "replay.capacity_bytes=0 must be >= 1"),
        ({"device": "tpu"}, "replay.device=tpu must be one of cpu, cuda"),
        ({"priority": "td_error"}, "replay.priority=td_error must be one of proportional, rank, uniform, recency"),
        ({"exponent": 11.0}, r"replay.exponent=11.0 must be in \[0.0, 10.0\]"),
        ({"beta_start": 1.1}, "replay.beta_start=1.1"),
        ({"beta_steps": -1}, "replay.beta_steps=-1"),
        ({"max_uses": 0}, "replay.max_uses=0"),
        ({"max_age": 0}, "replay.max_age=0"),
        ({"min_ess": 1.5}, "replay.min_ess=1.5"),
    ],
)
def test_an_error_names_the_key(settings, message):
    with pytest.raises(ValueError, match=message):
        ReplayConfig(**settings)


def test_it_is_off_where_nobody_asks_for_it():
    assert ReplayConfig().share == 0.0


def test_without_steps_beta_is_one_from_the_start():
    assert ReplayConfig(beta_steps=0, beta_start=0.2).beta(0) == 1.0
