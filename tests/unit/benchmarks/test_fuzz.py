"""Parsers on what others wrote: the kept corpus, inputs that crashed once, and what hypothesis finds."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.arms.parsers import ERRORS, PARSERS, Parser
from benchmarks.fuzz import CORPUS, Tally, execute, file_of, mutated, read_corpus, spots_of

CRASHED = {
    "chats": [
        b'\x01{"conversations": [{"from": [{}], "value": "b"}]}\n',
        b'\x02{"prompt": "a", "reward_model": "x"}\n',
        b'\x00{"messages": 1e99999999999999999999}\n',
    ],
    "conversations": [b'{"messages": [1, {"role": "user", "content": "a"}]}\n', b'{"messages": ["../x"]}\n'],
    "sentences.jsonl": [b'{"text": "a", "label": 1e+99999999999}\n', b'{"text": "a", "label": 1e-99999999999}\n'],
    "sentences.json": [b"[" * 3000, b'{"a":' * 3000, b"[" + b"9" * 5000 + b"]"],
    "rows.parquet": [b"PAR1" + b"\0" * 20 + b"PAR1", b"", b"PAR1"],
    "labels": [
        *(bytes([how]) + b"[" * 3000 for how in (0, 4, 5, 9, 20, 37)),
        b"\x05<thi\xf4j\xc4\x15\xf8\x10\xed\x01\xf4\x81\xaa\xa8\xb3\xde\r\x88",
    ],
    "manifest": [b"", b"[]", b'{"settings": null}', b'{"settings": {"seed": 1}, "files": 3}', b"\xff"],
    "journal": [b'{"seed": 1}\n[]\n', b'{"seed": 1}\n{"index": [], "text": 1}\n', b"\xff\n\xff\n", b"3\n3\n"],
    "metrics": [b"[]\n", b'{"step": "x"}\n', b"\xff\n", b"{\n"],
    "timeline": [b"\xff\n", b"{\n", b"3\n"],
    "settings": [b'{"model_path": "m", "device": "cpu", "extra_args": [{}]}'],
    "model folder": [
        b"\x01" + b'{"weight_map": {"a": "' + b"1" * 400 + b'"}}',
        b"\x01" + b'{"weight_map": {"a": "../x"}}',
        b"\x01[]",
        b"\x03\xff",
        b"\x03{% for m in " + b"[" * 3000,
    ],
}
"""By parser, inputs that ended in another error than ours once."""


def crashes(parser: Parser, inputs: list[bytes], scratch) -> list[str]:
    tally = Tally(inputs=[])
    for data in inputs:
        execute(parser, data, scratch, tally)
    assert tally.executions == len(inputs)
    return list(tally.crashes)


@pytest.mark.parametrize("name", PARSERS)
def test_good_kept_and_once_bad_inputs_crash_nothing(name, tmp_path):
    assert (
        crashes(PARSERS[name], [*PARSERS[name].seeds, *CRASHED.get(name, []), *read_corpus(CORPUS, name)], tmp_path)
        == []
    )


def test_every_kept_input_is_of_a_parser_that_there_is():
    assert {file.name for file in CORPUS.iterdir()} <= {file_of(name) for name in PARSERS}
    assert set(CRASHED) <= set(PARSERS)


@pytest.mark.parametrize("name", [name for name, parser in PARSERS.items() if parser.share >= 0.3])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
def test_no_bytes_crash_a_parser(name, data, tmp_path):
    assert crashes(PARSERS[name], [data], tmp_path) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=JSON)
def test_every_place_of_a_document_is_found(value):
    count = sum(1 for _ in spots_of(value))
    assert count == len(repr_leaves(value))


def repr_leaves(value) -> list:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [*inner, *(each for one in inner for each in repr_leaves(one))]


def test_a_seed_gives_the_same_inputs_and_another_one_others():
    def made(seed: int) -> list[bytes]:
        chance, inputs = random.Random(seed), [*PARSERS["rows"].seeds]
        return [mutated(inputs[0], inputs, chance) for _ in range(50)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert len(set(made(1))) > 40


@pytest.mark.parametrize(
    "error", [KeyError("x"), UnicodeDecodeError("utf-8", b"", 0, 1, "x"), ValueError(""), MemoryError()]
)
def test_an_error_that_is_nobodys_words_is_a_crash(error, tmp_path):
    def fail(_data, _scratch):
        raise error

    assert len(crashes(Parser(fail, (b"",)), [b""], tmp_path)) == 1
    assert all(issubclass(each, Exception) for each in ERRORS)
