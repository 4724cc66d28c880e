"""Every parser of ours for what others wrote: files, answers of servers, settings; with bytes to begin from.

A target takes bytes and a scratch folder. It returns, or raises one of ERRORS; anything else is a crash.
"""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.arms.parser_seeds import (
    ANSWERS,
    CHAT,
    FINGERPRINT,
    KEY,
    MADE,
    META,
    OPENAI,
    ROW,
    SCORE,
    STEP,
    TENSOR,
    VLLM_CHOICE,
    parquet_of,
    sqlite_seed,
)
from verl_ext.data.chats import FORMS, load_chats
from verl_ext.data.conversations import PATTERNS, POLICIES, from_jsonl, read_label
from verl_ext.data.rows import check_rows
from verl_ext.data.sentences import file_sentences
from verl_ext.evaluation.match import boxed_answer
from verl_ext.evaluation.mathematics.spelling import one_spelling
from verl_ext.run.api_key import check_key_name
from verl_ext.run.metrics import read_metrics
from verl_ext.run.model_files import check_files
from verl_ext.run.outputs import is_complete
from verl_ext.run.own_yaml import read_keys
from verl_ext.run.retry_after import retry_after_s
from verl_ext.run.settings import settings_of
from verl_ext.run.timeline import read_timeline
from verl_ext.run.visible import visible
from verl_ext.sampling.answers import Answers
from verl_ext.sampling.resume import Journal
from verl_ext.sampling.served import read_answer
from verl_ext.sampling.types import Answer, SamplingConfig
from verl_ext.teacher.client.protocol import prompt_span, read_cached_tokens, read_metas, read_score, span_of
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.store.format import CorruptScoreError, decode_score, encode_score
from verl_ext.teacher.store.probe_record import ProbeRecord
from verl_ext.teacher.store.store import ScoreStore, StoreError
from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError

ERRORS = (ValueError, CorruptScoreError, StoreError, TeacherResponseError)
"""Ours, and exactly these: UnicodeDecodeError and json.JSONDecodeError are a ValueError too, and nobody's words."""
Target = Callable[[bytes, Path], object]
VOCABULARY = 50
REQUEST = ScoreRequest([3, 4, 5], [6, 7, 8, 9], top_k=2)
LABEL_SETS = (("en", "de", "fr"), ("1", "2", "3", "4", "5"), ("yes", "no"), ("not-spam", "spam"), ("A", "B"))


@dataclass(frozen=True)
class Parser:
    """One target."""

    run: Target
    seeds: tuple[bytes, ...]
    """Good inputs, and bad ones of known kinds."""
    share: float = 1.0
    """Of the executions, relative to the others: less where one takes long."""


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def in_file(name: str, read: Callable[[Path], object]) -> Target:
    """The bytes are a file's."""

    def run(data: bytes, scratch: Path) -> object:
        file = scratch / name
        file.write_bytes(data)
        return read(file)

    return run


def chats(data: bytes, scratch: Path) -> object:
    form, file = FORMS[data[0] % len(FORMS) if data else 0], scratch / "chats.jsonl"
    file.write_bytes(data[1:])
    return load_chats(file, form, "", "chat")


def labels(data: bytes, _scratch: Path) -> object:
    text, how = data[1:].decode(errors="replace"), data[0] if data else 0
    extract, policy = [*PATTERNS][how % len(PATTERNS)], POLICIES[how // 4 % len(POLICIES)]
    return read_label(text, extract, policy, LABEL_SETS[how // 16 % len(LABEL_SETS)])


def mathematics(data: bytes, _scratch: Path) -> object:
    text = data.decode(errors="replace")
    return boxed_answer(text), one_spelling(text)


def manifest(data: bytes, scratch: Path) -> object:
    (scratch / "made.txt").write_bytes(b"made")
    (scratch / "manifest.json").write_bytes(data)
    return is_complete(scratch, "manifest.json", ["made.txt"], {"seed": 1, "hub": {"path": "a"}}, overwrite=False)


def finite(found: list[Score]) -> list[Score]:
    assert all(np.isfinite(score.logprobs).all() and score.logprobs.shape == (4,) for score in found)
    return found


def replies(data: bytes, _scratch: Path) -> object:
    span, metas = span_of(REQUEST), read_metas(data)
    assert span is not None
    finite([read_score(meta, span, REQUEST, VOCABULARY) for meta in metas])
    assert prompt_span(REQUEST.prompt_ids)
    return [read_cached_tokens(meta) for meta in metas]


def vllm_replies(data: bytes, _scratch: Path) -> object:
    span, engine = span_of(REQUEST), engine_of("vllm")
    assert span is not None
    return finite([engine.score(answer, span, REQUEST, VOCABULARY) for answer in engine.answers(data)])


def openai(data: bytes, _scratch: Path) -> object:
    with contextlib.suppress(orjson.JSONDecodeError):  # told of by the sampler with an excerpt
        return read_answer(orjson.loads(data))
    return None


def store_value(data: bytes, _scratch: Path) -> object:
    score = decode_score(KEY, data)
    return score.logprobs.shape


def store_file(data: bytes, scratch: Path) -> object:
    for file in scratch.glob("scores.sqlite*"):
        file.unlink()
    (scratch / "scores.sqlite").write_bytes(data)
    store = ScoreStore(scratch, 1 << 20)
    try:
        return store.get_many([KEY]), store.teachers(), store.is_empty()
    finally:
        store.close()


def settings(data: bytes, _scratch: Path) -> object:
    """Values of any kind for the fields of two settings classes, as a YAML file gives them."""
    try:
        given = orjson.loads(data)
        if isinstance(given, dict) and "model_path" in given and given.get("device") in (None, "auto"):
            given["device"] = "cpu"  # else torch is imported to look for a GPU
        kind = TeacherConfig if isinstance(given, dict) and "model_path" in given else SamplingConfig
        node = OmegaConf.structured(kind)
        OmegaConf.set_readonly(node, None)
        return settings_of(OmegaConf.merge(node, given), kind)
    except (orjson.JSONDecodeError, OmegaConfBaseException, AssertionError):
        return None  # OmegaConf's own refusals become one line in `verl_ext/run/verb.py`
    except ValueError as error:
        if "OmegaConf" in str(error) or "Object of unsupported type" in str(error):
            return None
        raise


def model_folder(data: bytes, scratch: Path) -> object:
    """The first byte says which of its files the others are."""
    names = ("config.json", "model.safetensors.index.json", "model.safetensors", "chat_template.jinja")
    folder = scratch / "model"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (folder / names[data[0] % len(names) if data else 0]).write_bytes(data[1:])
    return check_files("student.path", folder)


def headers(data: bytes, _scratch: Path) -> object:
    seconds = retry_after_s({"Retry-After": data.decode("latin-1")})
    assert 0 <= seconds <= 60
    return seconds


def words(data: bytes, _scratch: Path) -> object:
    text = data.decode(errors="surrogateescape")
    shown = visible(text)
    assert shown.isprintable() or not any(c < " " and c not in "\t\n" for c in shown)
    check_key_name("teacher.api_key_env", text)
    return shown


PARSERS: Mapping[str, Parser] = {
    "sentences.jsonl": Parser(
        in_file("x.jsonl", file_sentences), (lines({"text": "Hi", "label": "en", "group": 1, "slice": "edge"}),)
    ),
    "sentences.csv": Parser(in_file("x.csv", file_sentences), (b'text,label\n"a, b",en\nc,\n', b"\xff\xfet\0e\0")),
    "sentences.json": Parser(
        in_file("x.json", file_sentences), (b'[{"text": "Hi", "label": 1.50}]', lines({"text": "a"}))
    ),
    "chats": Parser(
        chats,
        (
            b"\0" + lines(CHAT),
            b"\1" + lines({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
            b"\2" + lines(ROW),
        ),
    ),
    "conversations": Parser(in_file("x.jsonl", from_jsonl), (lines(CHAT | {"index": 3}),)),
    "rows": Parser(in_file("x.jsonl", lambda file: check_rows("data.train_files", str(file))), (lines(ROW, ROW),)),
    "rows.parquet": Parser(
        in_file("x.parquet", lambda file: check_rows("data.train_files", str(file))), (parquet_of(ROW),), share=0.2
    ),
    "answers.parquet": Parser(
        in_file("x.parquet", lambda file: Answers.read("data", str(file))), (parquet_of(ROW, said=True),), share=0.1
    ),
    "labels": Parser(labels, tuple(bytes([how]) + text.encode() for how in (0, 4, 5, 9, 20, 37) for text in ANSWERS)),
    "mathematics": Parser(
        mathematics, (rb"so \boxed{\frac{1}{2}}", rb"\boxed{x=3} and \fbox 4", b"$1,000$"), share=0.2
    ),
    "manifest": Parser(manifest, (lines(MADE),)),
    "journal": Parser(
        in_file("answers.jsonl", lambda file: Journal(file, {"seed": 1}, False, Answer).answers),
        (lines({"seed": 1}, {"index": 0} | vars(Answer("a", 1, "stop"))),),
        share=0.3,
    ),
    "metrics": Parser(in_file("metrics.jsonl", read_metrics), (lines({"step": 1, "a": 1.5}, {"step": 2}) + b'{"st',)),
    "timeline": Parser(in_file("timeline.jsonl", read_timeline), (lines(STEP) + b'{"st',)),
    "SGLang's replies": Parser(replies, (json.dumps([{"meta_info": META}]).encode(),), share=2),
    "vLLM's replies": Parser(vllm_replies, (json.dumps({"choices": [VLLM_CHOICE]}).encode(),), share=2),
    "OpenAI's replies": Parser(openai, (json.dumps(OPENAI).encode(),)),
    "store values": Parser(store_value, (encode_score(KEY, SCORE), encode_score(KEY, Score(SCORE.logprobs)))),
    "store file": Parser(store_file, (sqlite_seed(),), share=0.02),
    "probe record": Parser(
        in_file("probe.json", ProbeRecord.load), (ProbeRecord(FINGERPRINT, ((1, 2),), ((-1.0,),)).to_json().encode(),)
    ),
    "settings": Parser(
        settings,
        (
            lines({"model_path": "m", "device": "cpu", "port": 1, "extra_args": ["--page-size", "1"]}),
            lines({"model_path": None, "mode": "external", "urls": ["http://a:1"], "api_key_env": "A_KEY"}),
            lines({"temperature": 0.7, "max_tokens": 4, "stop": ["x"], "seed": 1}),
        ),
        share=0.1,
    ),
    "YAML of keys": Parser(
        in_file("run.yaml", read_keys),
        (b"trainer:\n  a: 1\ndefaults:\n- platform: cpu\n", b"a: ${b}\nb: [1, .nan]\n"),
        share=0.1,
    ),
    "model folder": Parser(
        model_folder,
        (
            b"\0" + b'{"model_type": "qwen3"}',
            b"\1" + b'{"weight_map": {"a": "model.safetensors"}}',
            b"\2" + TENSOR,
            b"\3" + b"{% for m in messages %}{{ m.content }}{% endfor %}",
        ),
        share=0.2,
    ),
    "Retry-After": Parser(headers, (b"3", b"Wed, 21 Oct 2015 07:28:00 GMT", b"1e400", b"nan", b"-5"), share=0.3),
    "words": Parser(words, (b"TEACHER_API_KEY", b"\x1b[2J\xff", "\u202e漢".encode()), share=0.5),
}
