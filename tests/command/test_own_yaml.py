"""A user's own YAML holds a run, and so does `config.yaml` of a run that was."""

from pathlib import Path

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from recipe import CONFIGS, generate, on_policy_distillation, sft
from verl_ext.run.files import save_resolved_config
from verl_ext.run.hydra import chosen_groups
from verl_ext.run.overrides import parsed_word
from verl_ext.run.own_yaml import is_file_of_keys, typed_value
from verl_ext.run.verb import Verb, run_verb, words_of_files

TRAIN, SFT, GENERATE = on_policy_distillation.VERB, sft.VERB, generate.VERB
OWN = """
defaults:
  - platform: cpu
  - teacher: cpu_bf16
task: demo
student: {path: a/b}
data: {train_files: [x.parquet, y.parquet], apply_chat_template_kwargs: {enable_thinking: false}}
actor_rollout_ref: {actor: {optim: {lr: 3e-4}}}
method: {clip: null, policy_loss: {high: .inf}}
teachers: {math: {model_path: 'a "b" c'}}
"""


def composed(verb: Verb, *words: str) -> DictConfig:
    with verb.composing():
        return compose(verb.name, [*verb.added, *words])


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_file_says_what_a_command_line_says(tmp_path):
    words = words_of_files(TRAIN, [write(tmp_path / "my.yaml", OWN)], [])
    typed = ["platform=cpu", "teacher=cpu_bf16", "task=demo", "student.path=a/b", "method.policy_loss.high=inf"]
    typed += ["data.train_files=[x.parquet,y.parquet]", "+data.apply_chat_template_kwargs.enable_thinking=false"]
    typed += ["actor_rollout_ref.actor.optim.lr=3e-4", "+teachers.math.model_path='a \"b\" c'"]
    assert composed(TRAIN, *words) == composed(TRAIN, *typed)


def test_the_command_line_wins_over_the_file(tmp_path):
    typed = ["platform=cuda", "actor_rollout_ref.actor.optim.lr=1e-5"]
    words = words_of_files(TRAIN, [write(tmp_path / "my.yaml", OWN)], typed)
    config = composed(TRAIN, *words, *typed)
    assert (config.trainer.device, config.actor_rollout_ref.actor.optim.lr) == ("cuda", 1e-5)


@pytest.mark.parametrize(
    ("verb", "folder", "words"),
    [
        (TRAIN, CONFIGS, ["platform=cpu", "task=demo", "hardware=cpu", "update=lora", "teacher=cpu_fp32"]),
        (TRAIN, CONFIGS, ["model=qwen3_8b_base_from_32b", "hardware=h100_8x", "+teachers.math.model_path=a/c"]),
        (SFT, CONFIGS / "sft", ["platform=cpu", "task=demo", "preset=seed", "data.train_batch_size=8"]),
    ],
)
def test_config_yaml_of_a_run_is_that_run(monkeypatch, tmp_path, verb, folder, words):
    words = [*words, f"run_dir={tmp_path}/first", "data.train_files=x.parquet"]
    words += [] if any(word.startswith("model=") for word in words) else ["student.path=a/b"]
    with verb.composing():
        config = compose(verb.name, words, return_hydra_config=True)
        monkeypatch.setattr(HydraConfig, "_instances", {}, raising=False)
        HydraConfig.instance().set_config(config)
        choices = chosen_groups(folder)
    run = composed(verb, *words)
    file = save_resolved_config(OmegaConf.to_yaml(run, resolve=True), str(tmp_path), choices)
    found = words_of_files(verb, [str(file)], [])
    assert len(found) < 20, found
    again = composed(verb, *found)
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(run, resolve=True)
    moved = composed(verb, *found, f"run_dir={tmp_path}/second")
    assert moved.trainer.default_local_dir == f"{tmp_path}/second/checkpoints"


@pytest.mark.parametrize(
    ("verb", "text", "says"),
    [
        (TRAIN, "trainer: {total_step: 3}", "or trainer.total_training_steps?"),
        (TRAIN, "method: {cof: 1}", "did you mean method.coef?"),
        (TRAIN, "platform: cpuu", "did you mean platform=cpu"),
        (TRAIN, "defaults: [platform]", "defaults: platform: expected a group and its choice"),
        (SFT, "optim: {lr: abc}", "optim.lr=abc: expected a number"),
        (GENERATE, "sampling: {temprature: 1}", "did you mean sampling.temperature?"),
        (GENERATE, "n: many", "n=many: expected a whole number"),
        (GENERATE, "a: [1", "is no YAML"),
        (GENERATE, "- a", "expected keys"),
        (GENERATE, "[" * 2000, "expected keys"),
        (GENERATE, "18446744073709551616", "expected keys"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path, verb, text, says):
    file = write(tmp_path / "my.yaml", text)
    with pytest.raises(ValueError, match=rf"^{file}[^\n]+$") as wrong:
        words_of_files(verb, [file], [])
    assert says in str(wrong.value)


def test_a_verb_takes_a_file_beside_its_words(tmp_path, monkeypatch, capsys):
    file = write(tmp_path / "my.yaml", "model: a/b\ndata: rows.parquet\nn: 3\nsampling: {stop: ['<|im_end|>']}\n")
    monkeypatch.setattr("sys.argv", ["generate"])
    run_verb(GENERATE, print, [file, "n=5", "--cfg", "job"])
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.model, shown.n, shown.sampling.stop) == ("a/b", 5, ["<|im_end|>"])
    with pytest.raises(SystemExit, match=r"error: none\.yaml: cannot be read \(No such file or directory\)"):
        run_verb(GENERATE, print, ["none.yaml"])
    assert not is_file_of_keys("data=rows.yaml")


@pytest.mark.parametrize(
    "value", ['a "b"', "it's", "a,b", "${x}", "back\\slash\\", "", "null", "1", 1e-8, float("inf"), -3, None, True]
)
def test_every_value_comes_through_the_grammar_of_overrides(value):
    for given in (value, [value], {"k": value}, [[value], {"k": [value]}]):
        assert parsed_word(f"key={typed_value(given)}", ()).value() == given
