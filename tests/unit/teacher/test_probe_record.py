"""The probe: a record comes back, and another model shows in it."""

import dataclasses
from pathlib import Path

import pytest
from tiny_teacher import FINGERPRINT, VOCAB, BrokenScorer, TransformersScorer, with_noise
from transformers import Qwen3ForCausalLM

from verl_ext.teacher.config import usual_probe_tolerance
from verl_ext.teacher.store.probe_record import ProbeRecord, probe_sequences, take_probe
from verl_ext.teacher.types import TeacherUnavailableError


def test_the_probe_is_the_same_everywhere() -> None:
    sequences = probe_sequences(151_936)
    assert (len(sequences), {len(row) for row in sequences}) == (8, {64})
    assert sequences[0][:4] == (104582, 114926, 131182, 49164)
    assert {token for row in probe_sequences(7) for token in row} == set(range(7))


async def test_a_record_comes_back_to_the_bit(tmp_path: Path, model: Qwen3ForCausalLM) -> None:
    record = await take_probe(TransformersScorer(model), FINGERPRINT, probe_sequences(VOCAB))
    record.save(tmp_path / "new" / "teacher.json")
    loaded = ProbeRecord.load(tmp_path / "new" / "teacher.json")
    assert loaded == record
    assert len(loaded.logprobs) == 8
    assert {len(row) for row in loaded.logprobs} == {63}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["teacher.json"]


async def test_noise_of_a_thousandth_shows_in_the_probe(model: Qwen3ForCausalLM) -> None:
    sequences = probe_sequences(VOCAB)
    record = await take_probe(TransformersScorer(model), FINGERPRINT, sequences)
    same = await take_probe(TransformersScorer(with_noise(model, 0.0)), FINGERPRINT, sequences)
    noisy = await take_probe(TransformersScorer(with_noise(model, 1e-3)), FINGERPRINT, sequences)
    assert record.greatest_difference(same) <= usual_probe_tolerance("float32", None)
    assert record.greatest_difference(noisy) > usual_probe_tolerance("float32", None)
    assert record.greatest_difference(noisy) < usual_probe_tolerance("bfloat16", None)
    assert usual_probe_tolerance("float32", "fp8") == usual_probe_tolerance("bfloat16", None)


def test_the_difference_worked_out_by_hand() -> None:
    one = ProbeRecord(FINGERPRINT, ((1, 2, 3), (4, 5, 6)), ((-1.0, -2.0), (-3.0, -4.0)))
    two = dataclasses.replace(one, logprobs=((-1.0, -2.25), (-3.5, -4.0)))
    assert one.greatest_difference(two) == 0.5
    with pytest.raises(ValueError, match="different sequences"):
        one.greatest_difference(dataclasses.replace(one, sequences=((1, 2, 3), (4, 5, 7))))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": {"model": "m"}}'])
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=r"r\.json: not a record of a teacher"):
        ProbeRecord.load(tmp_path / "r.json")


async def test_a_teacher_that_does_not_answer(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(TeacherUnavailableError, match="gone"):
        await take_probe(BrokenScorer(model), FINGERPRINT, probe_sequences(VOCAB))
