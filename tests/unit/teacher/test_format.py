"""A score as bytes and its key: what comes back, and which damage is noticed."""

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from stored_scores import BARE, FULL, GIB, key, same

from verl_ext.teacher.store.format import CorruptScoreError, decode_score, encode_score, score_key
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Score, ScoreRequest


@pytest.mark.parametrize("score", [BARE, FULL, Score(np.zeros(0, np.float32))])
def test_a_score_comes_back_to_the_bit(tmp_path: Path, score: Score) -> None:
    first = ScoreStore(tmp_path, GIB)
    first.put_many({key(1): score})
    first.close()
    second = ScoreStore(tmp_path, GIB)
    found = second.get_many([key(1), key(2)])
    second.close()
    assert list(found) == [key(1)]
    assert same(found[key(1)], score)
    assert found[key(1)].from_store
    assert not score.from_store
    found[key(1)].logprobs[:] = 0.0  # its own memory, which a caller may write


def test_a_value_is_what_the_layout_says() -> None:
    value = encode_score(key(1), FULL)
    assert struct.unpack_from("<4sBBHII", value) == (b"OPDS", 2, 1, 0, 3, 2)
    body = np.frombuffer(value[16:-16], "<f4")
    assert body[:3].tolist() == FULL.logprobs.tolist()
    assert np.frombuffer(value[16:-16], "<i4")[3:9].tolist() == [7, 8, 0, 0, 151_935, 2]
    assert body[9:15].tolist() == [-0.5, -1.0, 0, 0, -np.inf, -2.0]
    assert len(value) == 16 + 4 * 15 + 16


def test_the_key_tells_every_part_from_the_next() -> None:
    base = ScoreRequest([1, 2], [3], [1], top_k=2)
    others = [
        dataclasses.replace(base, prompt_ids=[1], response_ids=[2, 3], response_mask=[1, 1]),
        dataclasses.replace(base, prompt_ids=[1], response_ids=[2, 3], response_mask=[1]),
        dataclasses.replace(base, prompt_ids=[2, 1]),
        dataclasses.replace(base, response_ids=[4]),
        dataclasses.replace(base, response_mask=[0]),
        dataclasses.replace(base, top_k=4),
        dataclasses.replace(base, top_k=0),
        *(dataclasses.replace(base, top_k=0, support_ids=np.array([ids], np.int32)) for ids in ([5], [6], [5, 6])),
    ]
    keys = {score_key("f", request) for request in [base, *others]} | {score_key("g", base)}
    assert len(keys) == len(others) + 2
    assert {len(found) for found in keys} == {32}


def test_the_key_is_the_same_where_the_question_is() -> None:
    request = ScoreRequest([1, 2], [3, 4])
    assert score_key("f", request) == score_key("f", dataclasses.replace(request, response_mask=[1, 1]))
    assert score_key("f", request) == score_key("f", dataclasses.replace(request, teacher="another name"))
    assert score_key("f", request) == score_key("f", ScoreRequest((1, 2), (3, 4)))
    # Golden: a change of the key makes every store that exists worthless, so it must be meant.
    assert score_key("f", request).hex().startswith("238fc388c64bf8ad")


def test_every_flipped_byte_is_noticed() -> None:
    value = encode_score(key(1), FULL)
    assert same(decode_score(key(1), value), FULL)
    for position in range(len(value)):
        broken = bytearray(value)
        broken[position] ^= 1
        with pytest.raises(CorruptScoreError):
            decode_score(key(1), bytes(broken))
    for wrong_key, wrong in [(key(2), value), (key(1), value[:-1]), (key(1), b""), (key(1), value + b"\0")]:
        with pytest.raises(CorruptScoreError):
            decode_score(wrong_key, wrong)
