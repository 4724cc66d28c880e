"""What a model card says is what the run's folder holds."""

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from saved_checkpoints import save

from verl_ext.data.rows import make_row
from verl_ext.data.sentences import Sentence
from verl_ext.run.visible import visible
from verl_ext.student.model_card import keep_evaluation, teachers_devices, write_cards
from verl_ext.student.weights import note_largest_weight

ROWS = [
    {"step": 1, "teacher_kl": 2.0, "critic/rewards/mean": 0.25, "timing_s/step": 1800.0, "response_length/mean": 2.0},
    {"step": 2, "teacher_kl": 0.5, "critic/rewards/mean": 0.75, "timing_s/step": 5400.0, "response_length/mean": 3.0},
]
ROWS = [row | {"perf/total_num_tokens": 1000.0, "teacher/tokens": 4000.0} for row in ROWS]
EVALUATION = {"accuracy": 0.5, "accuracy_interval_95": [0.4, 0.6], "rows": 300}


@pytest.fixture
def run_dir(tmp_path: Path, compose_run) -> Path:
    """As a LoRA run on two GPUs leaves it, the teacher on two of its own."""
    words = ["hardware=h100_8x", "update=lora", "teacher=fp8", "trainer.n_gpus_per_node=2", "teacher.dp=1"]
    config = compose_run(*words, "student.path=org/base", "teacher.model_path=org/big", f"run_dir={tmp_path}")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for step, name in ((4, "adapter"), (4, "merged")):
        (tmp_path / f"checkpoints/global_step_{step}/actor/{name}").mkdir(parents=True)
    (tmp_path / "adapter").symlink_to("checkpoints/global_step_4/actor/adapter")
    (tmp_path / "student").symlink_to("checkpoints/global_step_4/actor/merged")
    return tmp_path


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_settings_training_and_cost_are_the_runs(run_dir):
    write_cards(run_dir)
    card = lines_of(run_dir / "student" / "README.md")
    assert card[:3] == ["---", "base_model: org/base", "library_name: transformers"]
    for line in (
        "| teacher | org/big |",
        "| teacher's quantization | fp8 |",
        "| LoRA rank | 32 |",
        "| seed | 0 |",
        "| steps | 2 |",
        "| reverse KL from the teacher, nats a token | 2 → 0.5 |",
        "| seconds in steps | 7,200 |",
        "| samples | 256 |",  # 32 prompts x 4 samples x 2 steps
        "| tokens that the student sampled | 640 |",  # 128 x (2 + 3)
        "| tokens that the trainer read | 2,000 |",
        "| tokens that the teacher read | 8,000 |",
        "| GPU-hours of trainer and vLLM | 4.00 |",  # 2 GPUs for two hours
        "| GPU-hours of the teacher | 4.00 |",
        "    vllm serve .",
    ):
        assert line in card, line
    assert not [line for line in card if "| control" in line or "| discount" in line]  # what is off is not said


def test_a_card_has_its_sections_in_order(run_dir):
    write_cards(run_dir)
    sections = [line for line in lines_of(run_dir / "student" / "README.md") if line.startswith("## ")]
    assert sections == ["## Serve it", "## Settings", "## Training", "## Cost so far"]


HOSTILE = """x
license: mit
---
# Free <script>alert(1)</script> | `rm`\x1b[2J"); import os; os.system("$(id)")"""


@pytest.mark.parametrize("kind", ["student", "adapter"])
def test_no_setting_says_more_than_its_value(run_dir, kind):
    """A line break in a path was a key of the front matter; the rest is a table's row, a shell's or Python's word."""
    config = OmegaConf.load(run_dir / "config.yaml")
    for key in ("student.path", "teacher.model_path", "trainer.experiment_name"):
        OmegaConf.update(config, key, HOSTILE)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config))
    write_cards(run_dir)
    card = ModelCard.load(run_dir / kind / "README.md")
    assert isinstance(card.data, ModelCardData)
    assert card.data.base_model is None  # it is no name of the hub's
    assert card.data.license is None
    assert "\n# Free" not in card.text
    prose = "\n".join(line for line in card.text.splitlines() if not line.startswith("    "))  # the rest is code
    assert "<script" not in prose.replace("\\<", "")
    assert "\x1b" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| base |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    served = [line for line in card.text.splitlines() if "vllm serve" in line]
    assert shlex.split(served[0])[2].replace("\\n", "\n") == (visible(HOSTILE) if kind == "adapter" else ".")


def test_an_adapter_is_served_on_its_base(run_dir):
    write_cards(run_dir)
    card = lines_of(run_dir / "adapter" / "README.md")
    assert card[2] == "library_name: peft"
    assert "    vllm serve org/base --enable-lora --max-lora-rank 32 --lora-modules student=." in card


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({"share_device": True}, 0),
        ({"mode": "external"}, 0),
        ({"store_mode": "replay"}, 0),
        ({"tp": 1}, 1),
    ],
)
def test_a_teachers_gpus_are_those_it_had_to_itself(run_dir, change, devices):
    config = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    config.teacher.update(change)
    assert teachers_devices(config) == devices
    config.teachers = {"one": {}, "other": {"share_device": False, "mode": "managed", "store_mode": "read_write"}}
    assert teachers_devices(config) == devices + config.teacher.tp


def test_an_evaluation_of_the_student_is_shown_until_the_student_changes(run_dir):
    arms = {"base": EVALUATION | {"sees_prompt": False}, "teacher": EVALUATION | {"sees_prompt": True}}
    line = "| teacher, with the prompt | 0.500 (0.400-0.600) of 300 rows |"
    assert keep_evaluation(run_dir / "student", arms)
    assert all(line in lines_of(run_dir / kind / "README.md") for kind in ("student", "adapter"))
    write_cards(run_dir)
    assert line in lines_of(run_dir / "student" / "README.md")
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[-1] | {"step": 3}) + "\n")
    write_cards(run_dir)
    assert line not in lines_of(run_dir / "student" / "README.md")


def test_steps_after_the_newest_checkpoint_are_in_no_student(run_dir):
    save(run_dir / "checkpoints", 1)
    write_cards(run_dir)
    card = lines_of(run_dir / "student" / "README.md")
    assert "| steps | 1 |" in card
    assert "| seconds in steps | 1,800 |" in card


def test_the_distilled_prompt_is_shown_with_a_place_for_what_is_asked(run_dir):
    rows = [make_row(Sentence(0, "Hola", "es", 0, "all", "es"), "Name the {lang}uage:\n{text}", "train", "id")]
    pq.write_table(pa.Table.from_pylist(rows), run_dir / "rows.parquet")
    config = OmegaConf.load(run_dir / "config.yaml")
    config.data.train_files = str(run_dir / "rows.parquet")
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config))
    write_cards(run_dir)
    card = (run_dir / "student" / "README.md").read_text()
    assert "## The distilled prompt\n\nAs the teacher saw it:\n\n    user: Name the {lang}uage:\n    {text}\n" in card


def test_a_whole_model_has_no_alpha(run_dir):
    config = OmegaConf.load(run_dir / "config.yaml")
    config.actor_rollout_ref.model.lora_rank = 0
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config))
    write_cards(run_dir)
    assert not [line for line in lines_of(run_dir / "student" / "README.md") if "LoRA" in line]


def test_an_evaluation_of_a_model_of_no_run_is_kept_nowhere(tmp_path):
    (tmp_path / "student").mkdir()
    assert not keep_evaluation(tmp_path / "student", {})
    assert list(tmp_path.rglob("*")) == [tmp_path / "student"]


def test_a_run_without_weights_gets_no_card(run_dir):
    (run_dir / "student").unlink()
    (run_dir / "adapter").unlink()
    write_cards(run_dir)
    assert not list(run_dir.rglob("README.md"))


def test_weights_that_no_model_has_are_the_first_word_of_the_card(run_dir):
    folder = run_dir / "student"
    for largest, words in ((3.0, ""), (1e6, "are as large as 1e+06"), (float("nan"), "are not finite numbers")):
        save_file({"a": torch.ones(2), "b": torch.tensor([0.5, -largest])}, folder / "model.safetensors")
        note_largest_weight(folder)
        write_cards(run_dir)
        card = (folder / "README.md").read_text()
        assert ("> **Do not use these weights: some" in card) is bool(words)
        assert words in card


def test_what_changed_at_a_resume_is_named(run_dir):
    """A learning rate, which the settings tell of as it is now, and a method that the user insisted on; no port."""
    changes = [
        {"setting": "actor_rollout_ref.actor.optim.lr", "from": 0.1, "to": 0.2, "decides": False},
        {"setting": "method.coef", "from": 1.0, "to": 0.5, "decides": True},
        {"setting": "teacher.port", "from": 1, "to": 2, "decides": False},
    ]
    lines = [{"after_step": 1, "changes": []}, {"after_step": 3, "changes": changes}]
    (run_dir / "resumed.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"after')
    write_cards(run_dir)
    card = lines_of(run_dir / "student" / "README.md")
    assert "| actor_rollout_ref.actor.optim.lr, after step 3 | 0.1 → 0.2 |" in card
    assert "| method.coef, after step 3 | 1.0 → 0.5 |" in card
    assert not [line for line in card if "teacher.port" in line]
