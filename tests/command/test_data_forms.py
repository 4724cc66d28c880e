"""The table of docs/data.md, line by line: what training and the doctor say, what SFT says, what is converted."""

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from tiny_student import ROW, write_student

from recipe import create_data
from verl_ext.checks import memory
from verl_ext.checks.context import context_of_run
from verl_ext.checks.finding import FAIL
from verl_ext.checks.run import check, look
from verl_ext.data.rows import check_rows
from verl_ext.sft.dataset import read_conversations

Make = Callable[[Path], list[Path]]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
]


def parquet(*rows: dict[str, Any]) -> Make:
    def make(folder: Path) -> list[Path]:
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "a.parquet")
        return [folder / "a.parquet"]

    return make


def jsonl(*rows: dict[str, Any], name: str = "a.jsonl", encoding: str = "utf-8") -> Make:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return written(name, text.encode(encoding))


def written(name: str, content: bytes) -> Make:
    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content)
        return [folder / name]

    return make


def several(folder: Path) -> list[Path]:
    (folder / "b").mkdir()
    return [*parquet(ROW)(folder), *jsonl(ROW)(folder / "b")]


def row(**changes: Any) -> dict[str, Any]:
    return ROW | changes


def truth(value: Any) -> dict[str, Any]:
    return row(reward_model={"style": "rule", "ground_truth": value})


def prompt(*messages: dict[str, Any]) -> dict[str, Any]:
    return row(prompt=list(messages))


def user(content: Any, **others: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **others}


PARTS = [{"type": "text", "text": "Good "}, {"type": "text", "text": "morning"}]
IMAGE = [*PARTS, {"type": "image_url", "image_url": {"url": "x"}}]
CHATS = [{"messages": [*CHAT[:1], user(f"Hi {i}"), CHAT[2]]} for i in range(4)]
WITHOUT = {name: value for name, value in ROW.items() if name != "teacher_messages"}
FORMS: dict[str, Make] = {
    "rows of `verl-opd data`": parquet(ROW),
    "several files, `data.train_files=[a,b]`": several,
    "rows as .jsonl": jsonl(ROW),
    "a prompt that is a plain text": parquet(
        row(prompt="Good morning", teacher_messages="Which language? Good morning")
    ),
    "contents as text parts, `[{type: text, text: ...}]`": parquet(prompt(user(PARTS))),
    "messages with null fields, as parquet has them (`tool_calls`, `name`)": parquet(
        row(prompt=[user("Good morning", tool_calls=None, name=None)], teacher_messages=[user("x", tool_calls=None)])
    ),
    "a right answer that is a number": parquet(truth(7)),
    "right answers that are missing, null or NaN; no `reward_model`": jsonl(
        truth(None), truth(float("nan")), row(reward_model=None), {k: v for k, v in ROW.items() if k != "reward_model"}
    ),
    "no `extra_info`, or without our fields": jsonl(row(extra_info=None), row(extra_info={"url": "x", "index": "t-1"})),
    "UTF-8 or UTF-16 with a byte-order mark": jsonl(ROW, encoding="utf-16"),
    "verl's rows (`prompt`, `reward_model`), no `teacher_messages`": parquet(
        WITHOUT, WITHOUT | {"prompt": [user("other")]}
    ),
    "ShareGPT (`conversations` of `from`, `value`)": written(
        "a.json",
        json.dumps(
            [{"conversations": [*SHAREGPT[:1], {"from": "human", "value": i}, SHAREGPT[2]]} for i in "ab"]
        ).encode(),
    ),
    "OpenAI's chats (`messages`), with or without a system message": jsonl(*CHATS, {"messages": [user("none")]}),
    "chats whose contents are text parts, with null fields": parquet(
        *({"messages": [user([{"type": "text", "text": i}], tool_calls=None)], "tools": None} for i in "ab")
    ),
    "sentences in .csv (`text`, `label`)": written("a.csv", b'text,label\n"one, two",de\nthree,en\n'),
    "sentences in .txt, one a line": written("a.txt", b"one\ntwo\n"),
    "sentences in .jsonl (`text`, `label`)": jsonl({"text": "one", "label": 1}, {"text": "two", "label": None}),
    "problems without an answer": jsonl({"problem": "1 + 1?"}, {"problem": "1 + 2?"}),
    "Alpaca (`instruction`, `input`, `output`)": jsonl({"instruction": "a", "input": "b", "output": "c"}),
    "pairs of answers (`chosen`, `rejected`)": jsonl({"prompt": "a", "chosen": "b", "rejected": "c"}),
    "an image among the parts of a content": jsonl(prompt(user(IMAGE)) | {"messages": [user(IMAGE)]}),
    "a column `images`": jsonl(row(images=["x.png"], messages=[user("x")])),
    "messages that call tools": jsonl(
        prompt(user("x", tool_calls=[{"id": 1}])) | {"messages": [user("x", tool_calls=[1])]}
    ),
    "a prompt that ends with an answer": parquet(prompt(*CHAT)),
    "a prompt that is JSON in a text": parquet(row(prompt=json.dumps([user("x")]))),
    "an empty prompt": parquet(prompt(user("  "))),
    "a content that is null": jsonl(prompt(user(None)) | {"messages": [user(None)]}),
    "a right answer that is a list, an object, true or false": jsonl(truth(["a"])),
    "whole numbers that a float rounded": parquet(truth(float(2**60))),
    "another encoding, such as CP1252": jsonl(prompt(user("spät")), encoding="cp1252"),
    "a line that is no JSON": written("a.jsonl", b"{'prompt': 1}\n"),
    "a file without rows": lambda folder: (
        pq.write_table(pa.table({"prompt": ["x"]}).slice(1), folder / "a.parquet"),
        [folder / "a.parquet"],
    )[1],
    "another kind of file": written("a.xlsx", b"x"),
    "a file that is not there": lambda folder: [folder / "none.parquet"],
}


def table() -> dict[str, list[str]]:
    """The lines of the table in docs/data.md, by what one has."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    return {first.strip(): rest for first, *rest in cells[1:]}


TABLE = table()


def test_every_line_of_the_table_is_tried():
    assert list(TABLE) == list(FORMS)


@pytest.fixture(scope="module")
def base(compose_run, tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("pair") / "base"), pickle.dumps(
        compose_run("platform=cpu", "task=demo")
    )


@pytest.fixture
def run_on(base, tmp_path, monkeypatch):
    """A training configuration that reads these files."""
    monkeypatch.setattr(memory, "CPU_BASE_GIB", 0.0)  # what else runs on this machine is not under test

    def compose(files: list[Path]):
        student, composed = base
        config = pickle.loads(composed)
        OmegaConf.set_struct(config, False)
        words = [f"student.path={student}", f"teacher.python={sys.executable}", f"run_dir={tmp_path}/run"]
        config.merge_with_dotlist(
            [
                *words,
                "data.train_batch_size=1",
                "data.max_prompt_length=512",
                "actor_rollout_ref.rollout.max_model_len=516",
            ]
        )
        config.data.train_files = [str(file) for file in files]
        config.data.val_files = config.data.train_files
        return config

    return compose


@pytest.mark.parametrize("name", list(FORMS))
def test_training_and_the_doctor_agree_with_the_table(run_on, tmp_path, name):
    training, _, _, said = TABLE[name]
    config = run_on(FORMS[name](tmp_path))
    failed = [finding for finding in look(context_of_run(config)) if finding.verdict == FAIL]
    if training == "taken":
        check(config)
        assert failed == []
        return
    assert training == "refused"
    with pytest.raises(ValueError, match="train_files") as refused:
        check(config)
    message = str(refused.value)
    assert "\n" not in message
    assert re.search(r"`(.*?)`", said)[1] in message
    assert {finding.name for finding in failed} == {"data", "held-out data"}
    assert f"{failed[0].seen}; {failed[0].fix}" in (message, f"{message}; change the key that is named")


@pytest.mark.parametrize("name", list(FORMS))
def test_sft_agrees_with_the_table(tmp_path, name):
    _, sft, _, said = TABLE[name]
    files = [str(file) for file in FORMS[name](tmp_path)]
    if sft == "taken":
        assert read_conversations("data.train_files", files)
        return
    assert sft == "refused"
    with pytest.raises(ValueError, match=r"^data\.train_files=") as refused:
        read_conversations("data.train_files", files)
    assert "\n" not in str(refused.value)
    if said.startswith("SFT"):
        assert re.search(r"`(.*?)`", said)[1] in str(refused.value)


@pytest.mark.parametrize("name", [name for name, cells in TABLE.items() if cells[2] != "-"])
def test_what_is_converted_is_taken(run_on, tmp_path, monkeypatch, capsys, name):
    command = TABLE[name][2].strip("`").replace("FILE", str(FORMS[name](tmp_path)[0])).split()
    assert command[:2] == ["verl-opd", "data"]
    monkeypatch.setattr(sys, "argv", ["verl-opd data", *command[2:], f"out_dir={tmp_path}/out"])
    create_data.main()
    assert " train, " in capsys.readouterr().out
    check(run_on([tmp_path / "out" / "train.parquet"]))


def made_of(tmp_path, monkeypatch, *words: str) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["verl-opd data", *words, f"out_dir={tmp_path}/out"])
    create_data.main()
    return [
        row for split in ("train", "heldout") for row in check_rows("data", str(tmp_path / "out" / f"{split}.parquet"))
    ]


def test_the_system_message_of_a_chat_is_what_the_teacher_sees_alone(tmp_path, monkeypatch, capsys):
    file = str(jsonl(*CHATS)(tmp_path)[0])
    rows = made_of(tmp_path, monkeypatch, "--from", "openai", file)
    assert sorted(row["prompt"][0]["content"] for row in rows) == ["Hi 0", "Hi 1", "Hi 2", "Hi 3"]
    assert all(row["teacher_messages"] == [CHAT[0], *row["prompt"]] for row in rows)
    assert {row["data_source"] for row in rows} == {"chat"}
    printed = capsys.readouterr().out
    assert "4 of 4 chats have a system message, which the teacher sees alone" in printed
    assert "the last answer of 4 chats is in no row" in printed
    chats = read_conversations("data.train_files", str(tmp_path / "out" / "chats.jsonl"))
    assert [messages[-1] for _, messages in chats] == [CHAT[2]] * 3


def test_a_system_message_of_a_file_is_for_the_teacher_of_every_row(tmp_path, monkeypatch):
    (tmp_path / "system.txt").write_text("\ufeffBe brief.\n")
    (tmp_path / "s.txt").write_text("one\ntwo\n")
    words = ("source=file", f"sentences={tmp_path}/s.txt", "prompt=none", f"system={tmp_path}/system.txt")
    rows = made_of(tmp_path, monkeypatch, *words)
    assert [row["teacher_messages"] for row in rows] == [[CHAT[0], *row["prompt"]] for row in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from"], r"--from out_dir=.*: expected --from openai\|sharegpt\|verl FILE"),
        (["--from", "csv", "a.csv"], r"--from csv: expected .*; sentences are source=file"),
        (["--from", "openai", "--debug"], "--from openai: expected"),
        (["--from", "openai", "none.jsonl"], "sentences=none.jsonl: no such file"),
        (
            ["--from", "openai", "FILE", "prompt=math"],
            r"prompt, student_prompt: source=openai has its own; leave them out, or give system=FILE",
        ),
        (
            ["--from", "sharegpt", "FILE"],
            "has no conversations, as --from sharegpt needs; it has messages; take --from openai",
        ),
        (["--from", "openai", "FILE", "system=FILE"], "has a system message of its own"),
        (["--from", "openai", "FILE", "max_chars=9"], "chats are not cut"),
    ],
)
def test_a_wrong_conversion_is_one_line(tmp_path, monkeypatch, words, message):
    file = str(jsonl(*CHATS)(tmp_path)[0])
    with pytest.raises(SystemExit, match=message) as refused:
        made_of(tmp_path, monkeypatch, *(word.replace("FILE", file) for word in words))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([*CHAT, CHAT[0], CHAT[1]], "a system message stands inside the chat"),
        ([CHAT[0]], "ends without a question"),
        ([CHAT[2], CHAT[2]], "ends without a question"),
        ([{"role": "tool", "content": "x"}, CHAT[1]], "a message has the role tool"),
    ],
)
def test_a_chat_that_asks_nothing_names_its_line(tmp_path, monkeypatch, messages, message):
    file = str(jsonl(*CHATS, {"messages": messages})(tmp_path)[0])
    with pytest.raises(SystemExit, match=rf"a\.jsonl:5: .*{message}"):
        made_of(tmp_path, monkeypatch, "--from", "openai", file)
