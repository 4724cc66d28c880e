"""Ways to break a good run: each takes a pair of models, may change its files, and gives the overrides."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from fake_sglang import FakeSGLang
from fake_vllm import FakeVLLM
from model_pair import Pair
from saved_checkpoints import SHARD, save
from tiny_student import ROW

from verl_ext.run.models import load_tokenizer


def teacher(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that takes a changed copy of the student as teacher."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("teacher"))
        return [f"teacher.model_path={folder}"]

    return override


def changed_config(**changes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def student(change: Callable[[Path], None]) -> Callable[[Pair], list[str]]:
    """The override that trains a changed copy of the student, taught by the student itself."""

    def override(pair: Pair) -> list[str]:
        change(folder := pair.copy("student"))
        return [f"student.path={folder}", f"teacher.model_path={pair.student}"]

    return override


def replaced_config(**content) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(content)) and None


def composite(folder: Path) -> None:
    """The text model as the text part of one that sees pictures too."""
    text = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2_5_vl_text"}
    replaced_config(model_type="qwen2_5_vl", text_config=text)(folder)


def changed_tokenizer(folder: Path, **changes) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_eos(folder: Path) -> None:
    """As the tokenizer of SmolLM2 is after its conversion from GGUF."""
    changed_tokenizer(folder, eos_token="<|im_start|>")


def cut_off(folder: Path) -> None:
    """As after half a download."""
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def traversing(folder: Path) -> None:
    """Loaders open what the index names, beside the folder too."""
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def broken_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{% if %}")


def no_eos(folder: Path) -> None:
    changed_tokenizer(folder, eos_token=None)


def swap_two_ids(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "!")


def huge(pair: Pair) -> list[str]:
    folder = pair.copy("huge")
    header = json.dumps({"more": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    with (folder / "more.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        os.truncate(file.fileno(), 8 + len(header) + (1 << 40))  # sparse
    return [f"student.path={folder}", f"teacher.model_path={pair.student}"]


def without_template(pair: Pair) -> list[str]:
    folder = pair.copy("plain")
    (folder / "chat_template.jinja").unlink()
    return [f"student.path={folder}"]


IN_4_BITS = (
    *("actor_rollout_ref.model.lora.base=nf4", "actor_rollout_ref.model.lora_rank=8"),
    *("actor_rollout_ref.rollout.load_format=safetensors", "actor_rollout_ref.actor.checkpoint.save_lora_only=true"),
)
"""As update=qlora."""


def words(*overrides: str) -> Callable[[Pair], list[str]]:
    return lambda _: list(overrides)


def taught(*overrides: str, answer: str = "de") -> Callable[[Pair], list[str]]:
    """A quarter of a step is the teacher's answer to one question."""

    def override(pair: Pair) -> list[str]:
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
        (file := pair.scratch / "taught.jsonl").write_text(json.dumps({"messages": messages}))
        return ["method.off_policy_share=0.25", f"method.off_policy_data={file}", *overrides]

    return override


def lost_role(pair: Pair) -> list[str]:
    """A template that knows two roles, as Qwen3's does."""
    folder = pair.copy("drops")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("in messages", "in messages if message.role in ('system', 'user')"))
    hidden = [{"role": "developer", "content": "Answer in one word."}, *ROW["prompt"]]
    return [f"student.path={folder}", f"data.train_files={pair.write_rows(ROW, ROW | {'teacher_messages': hidden})}"]


def refused_role(pair: Pair) -> list[str]:
    """A template that raises, as Gemma 2's does, and held-out rows that nobody renders before the validation."""
    folder = pair.copy("raises")
    file = folder / "chat_template.jinja"
    file.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + file.read_text()
    )
    told = [{"role": "system", "content": "Answer."}, *ROW["prompt"]]
    return [f"student.path={folder}", f"data.val_files={pair.write_rows(ROW, ROW | {'prompt': told})}"]


def served(*, right_model: bool, **info: str) -> Callable[[Pair], list[str]]:
    """An external server whose tokenizer has other ids."""

    def override(pair: Pair) -> list[str]:
        fake = pair.serve(FakeSGLang(vocabulary=2, tokenize=lambda text: [0] * len(text)))
        fake.info |= info | ({"model_path": str(pair.student)} if right_model else {})
        return ["teacher.mode=external", f"teacher.urls=[{fake.url}]"]

    return override


def served_by_vllm(*more: str, right_model: bool = True) -> Callable[[Pair], list[str]]:
    """An external vLLM as it is started by default."""

    def override(pair: Pair) -> list[str]:
        tokenizer = load_tokenizer(str(pair.student))
        fake = FakeVLLM(vocabulary=2, tokenize=lambda text: tokenizer.encode(text, add_special_tokens=False))
        if right_model:
            fake.info["data"][0]["root"] = str(pair.student)
        pair.serve(fake)
        return ["teacher.engine=vllm", "teacher.mode=external", f"teacher.urls=[{fake.url}]", *more]

    return override


def begun_otherwise(pair: Pair) -> list[str]:
    """A folder that holds another run, which has a checkpoint."""
    run_dir = pair.scratch / "run"
    run_dir.mkdir()
    (run_dir / "origin.json").write_text("{}")
    save(run_dir / "checkpoints", 1, run_dir)
    return []


def torn(pair: Pair) -> list[str]:
    """One whose only checkpoint was cut off."""
    os.truncate(save(pair.scratch / "run" / "checkpoints", 1) / SHARD, 10)
    return []


def of_two_ranks(pair: Pair) -> list[str]:
    save(pair.scratch / "run" / "checkpoints", 1, ranks=2)
    return []


def at_work(pair: Pair) -> list[str]:
    """A folder in which another run, here this process, holds the lock as long as it lives."""
    run_dir = pair.scratch / "run"
    run_dir.mkdir()
    HELD.append((run_dir / ".lock").open("w"))
    fcntl.flock(HELD[-1], fcntl.LOCK_EX)
    HELD[-1].write('{"pid": 7, "host": "other"}')
    HELD[-1].flush()
    return []


HELD: list[IO[str]] = []
TOOL = Path(__file__).parents[2] / "examples/calculator.py"
AGENT, TURNS = "actor_rollout_ref.rollout.agent", "actor_rollout_ref.rollout.multi_turn"
TOOLS = (f"{AGENT}.default_agent_loop=tool_agent", f"{TURNS}.function_tool_path={TOOL}")


def unknown_tool(pair: Pair) -> list[str]:
    named = ROW | {"extra_info": {"index": 1, "tool_selection": ["abacus"]}}
    return [*TOOLS, f"data.train_files={pair.write_rows(named, named)}"]


NOBODY = ("teacher.mode=external", "teacher.urls=[http://127.0.0.1:9]", "teacher.request_timeout_s=5")
STUDENTS = ("method.loss=reverse_kl", "method.top_k=8", "method.support=student")
