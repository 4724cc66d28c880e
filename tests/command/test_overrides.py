"""Every kind of wrong override is refused in one line that names what would be right."""

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipe import evaluate, on_policy_distillation, score, sft
from verl_ext.run.hydra import schema_of
from verl_ext.run.overrides import in_one_line
from verl_ext.run.verb import Verb, check_words
from verl_ext.trainer.config import MethodConfig

TRAIN, EVALUATE, SCORE, SFT = on_policy_distillation.VERB, evaluate.VERB, score.VERB, sft.VERB
LR = "did you mean actor_rollout_ref.actor.optim.lr"


@pytest.mark.parametrize(
    ("verb", "word", "says"),
    [
        (TRAIN, "optim.lr=1", LR),
        (TRAIN, "actor_rollout_ref.optim.lr=1", LR),
        (TRAIN, "lr=1", LR),
        (TRAIN, "actor_rollout_ref.actor.optim.lrr=1", LR),
        (TRAIN, "trainer.total_step=3", "trainer.total_training_steps"),
        (TRAIN, "method.cof=1", "did you mean method.coef?"),
        (TRAIN, "+method.cof=1", "did you mean method.coef?"),
        (TRAIN, "~method.cof", "did you mean method.coef?"),
        (TRAIN, "method={cof: 1}", "did you mean method.coef?"),
        (TRAIN, "data={train_batch_sise: 1}", "did you mean data.train_batch_size?"),
        (TRAIN, "+data.train_batch_size=3", "the key exists; write data.train_batch_size=3"),
        (TRAIN, "hardwre=cpu", "did you mean hardware"),
        (TRAIN, "hardware=h20_1x", "did you mean hardware=h200_1x"),
        (TRAIN, "hardware=moon", "choices: a100_1x, a100_8x"),
        (TRAIN, "update=null", "choices: full, lora"),
        (TRAIN, "hardware@x=cpu", "write hardware=NAME"),
        (TRAIN, "hardwre@x=cpu", "did you mean hardware?"),
        (TRAIN, "+platform=cpu", "write platform=cpu"),
        (TRAIN, "~platform=cpu", "platform is cuda; write ~platform"),
        (TRAIN, "data=rows.parquet", "did you mean data.train_files"),
        (TRAIN, "method=3", "did you mean method.coef"),
        (TRAIN, "student.path", "student.path: expected key=value; did you mean student.path=...?"),
        (TRAIN, "run_dir=/a=b", """'run_dir="/a=b"'"""),
        (TRAIN, "method.coef=abc", "method.coef=abc: expected a number"),
        (TRAIN, "method.tail=3.5", "expected true or false"),
        (TRAIN, "method.top_k=2.5", "expected a whole number"),
        (TRAIN, "teacher.urls=http://x", "expected a list, as in [a,b]"),
        (TRAIN, "data.train_batch_size=abc", "expected a number, as the default 32"),
        (TRAIN, "data.train_batch_size={a: 1}", "expected a number, as the default 32"),
        (TRAIN, "trainer.val_before_train=maybe", "expected true or false, as the default false"),
        (TRAIN, "data.apply_chat_template_kwargs.a=1", "+data.apply_chat_template_kwargs.a=... adds a"),
        (TRAIN, "trainer.logger.7=wandb", "unknown key trainer.logger.7"),
        (SFT, "optm.lr=3", "did you mean optim.lr?"),
        (EVALUATE, "dat=x", "did you mean data?"),
        (EVALUATE, "labels=yes,no", "'labels=[yes,no]'"),
        (SCORE, "teacher.ulrs=[a]", "did you mean teacher.urls?"),
    ],
)
def test_a_wrong_word(verb: Verb, word: str, says: str):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        check_words(verb, [word])
    message = str(caught.value)
    assert says in message
    assert ("To append" in message, len(message) < 400) == (False, True)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (TRAIN, ["platform=cpu", "method.coef=2", "data.train_files=[a,b]", "method.clip=null", "method={coef: 2}"]),
        (TRAIN, ["+teachers.math.model_path=x", "++method.coef=1", "~trainer.logger", "data.train_batch_size=${a}"]),
        (TRAIN, ["trainer.logger.0=wandb", "trainer.logger=wandb", "actor_rollout_ref.rollout.top_p=0.9"]),
        (TRAIN, ["+teachers={math:{},prose:{model_path:x}}", "+trainer.logger=[wandb]"]),
        (TRAIN, ["actor@actor_rollout_ref.actor=dp_actor", "hydra.run.dir=x", "hardware=h100_8x"]),
        (SCORE, ["model=x", "data=y", "teacher=fp8", "teacher.urls=[a]"]),
    ],
)
def test_right_words(verb: Verb, words: list[str]):
    check_words(verb, words)


def test_several_values_are_a_sweep_where_one_is_asked_for():
    check_words(TRAIN, ["method.coef=1,2", "hardware=cpu,h200_1x"], sweep=True)


def test_an_error_of_the_libraries_keeps_what_is_wrong_and_loses_their_notes():
    with pytest.raises(OmegaConfBaseException) as wrong:
        OmegaConf.update(schema_of(MethodConfig), "top_k", "many")
    assert "full_key" in str(wrong.value)
    assert in_one_line(wrong.value) == "top_k: Value 'many' of type 'str' could not be converted to Integer"
    unknown = ConfigCompositionException(
        "Key 'a' is not there\nTo append to your config use +a=1\nSet the env variable X"
    )
    assert in_one_line(unknown) == "Key 'a' is not there"
