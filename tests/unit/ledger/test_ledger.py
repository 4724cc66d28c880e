"""The file survives what cuts it, and says what stands, what was done again and what is lost."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from verl_ext.ledger.entries import Entry, Flops, Tokens, entry_of
from verl_ext.ledger.ledger import Ledger, append, read, totals
from verl_ext.ledger.meter import Meter, energy_joules, shape_or_none, written
from verl_ext.run.model_shape import ModelShape

ENTRY = Entry(
    phase="train",
    step=1,
    unix_time=1795678488.25,
    seconds=2.5,
    device_seconds=5.0,
    devices=2,
    samples=4,
    tokens=Tokens(sampled=10, prefilled=20, prefilled_cached=60, scored=30, trained=40),
    flops=Flops(sample=1.0, score=2.0, train_forward=3.0, train_backward=6.0),
    peak_bytes=7,
    energy_joules=8.0,
)
SHAPE = ModelShape(hidden=4, layers=1, heads=2, kv_heads=1, head_size=2, intermediate=6, vocab=10, tied=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.jsonl"


def steps(*numbers: int | None, phase: str = "train") -> list[Entry]:
    return [replace(ENTRY, step=number, phase=phase, seconds=float(place)) for place, number in enumerate(numbers)]


def written_steps(path: Path, *entries: Entry) -> Ledger:
    for entry in entries:
        append(path, entry)
    return read(path)


def test_an_entry_comes_back_as_it_was_and_the_file_is_the_documented_one(path):
    bare = replace(ENTRY, step=None, phase="labels", flops=None, peak_bytes=None, energy_joules=None)
    assert written_steps(path, ENTRY, bare) == Ledger((ENTRY, bare))
    assert json.loads(path.read_text().splitlines()[0]) == {
        "schema": 1,
        "phase": "train",
        "step": 1,
        "unix_time": 1795678488.25,
        "seconds": 2.5,
        "device_seconds": 5.0,
        "devices": 2,
        "peak_bytes": 7,
        "energy_joules": 8.0,
        "samples": 4,
        "tokens": {"sampled": 10, "prefilled": 20, "prefilled_cached": 60, "scored": 30, "trained": 40},
        "flops": {"sample": 1.0, "score": 2.0, "train_forward": 3.0, "train_backward": 6.0},
    }


def test_wherever_a_line_is_cut_the_others_are_whole_and_the_cut_is_counted(path):
    whole = len(ENTRY.as_line())
    second, third = replace(ENTRY, step=2), replace(ENTRY, step=3)
    for length in range(1, whole + 1):
        path.unlink(missing_ok=True)
        append(path, ENTRY)
        with path.open("a") as file:
            file.write(second.as_line()[:length])
        lost = length < whole - 1  # what lacks its newline alone lacks nothing
        before = (ENTRY,) if lost else (ENTRY, second)
        assert read(path) == Ledger(before, cut_lines=int(lost))
        append(path, third)
        assert read(path) == Ledger((*before, third), cut_lines=int(lost))


def test_a_line_that_is_whole_and_no_entry_is_refused_with_its_place(path):
    append(path, ENTRY)
    good = json.loads(ENTRY.as_line())
    for wrong, says in [
        (good | {"schema": 2}, "schema=2: this version reads 1"),
        ({key: value for key, value in good.items() if key != "tokens"}, "no tokens"),
        (good | {"phase": "lunch"}, "phase='lunch' must be one of train, sft"),
        (good | {"seconds": -1}, "every number must be finite and >= 0"),
        (good | {"seconds": "2"}, "must be real number"),
        (good | {"step": "1"}, "step='1'"),
        (good | {"tokens": {"eaten": 1}}, "eaten"),
        (3, "no entry of a ledger"),
    ]:
        path.write_text(ENTRY.as_line() + json.dumps(wrong) + "\n")
        with pytest.raises(ValueError, match=r"ledger\.jsonl:2 is no entry of a ledger") as refused:
            read(path)
        assert says in str(refused.value)
    assert entry_of(good | {"added later": 1}) == ENTRY


def test_steps_done_again_after_a_resume_are_told_apart_and_stay(path):
    entries = steps(1, 2, 3, 4, 3, 4, 5)
    assert written_steps(path, *entries) == Ledger((*entries[:2], *entries[4:]), tuple(entries[2:4]))


def test_an_attempt_that_began_anew_leaves_nothing_standing(path):
    entries = steps(1, 2, 3, 1)
    assert written_steps(path, *entries) == Ledger(tuple(entries[3:]), tuple(entries[:3]))


def test_each_phase_has_steps_of_its_own_and_what_has_none_always_stands(path):
    entries = [*steps(4), *steps(4, phase="evaluate"), *steps(5), *steps(None, None, phase="evaluate")]
    assert written_steps(path, *entries).abandoned == ()


def test_totals_by_hand():
    other = replace(ENTRY, peak_bytes=9, seconds=1.5)
    found = totals([ENTRY, other])
    assert (found.seconds, found.device_seconds, found.samples, found.peak_bytes) == (4.0, 10.0, 8, 9)
    assert found.tokens == Tokens(20, 40, 120, 60, 80)
    assert found.tokens.total == 20 + 40 + 60 + 80  # what a cache spared was not read
    assert found.flops == Flops(2.0, 4.0, 6.0, 12.0)
    assert found.flops.total == 24.0
    assert found.energy_joules == 16.0
    unknown = totals([ENTRY, replace(ENTRY, flops=None, energy_joules=None, peak_bytes=None)])
    assert (unknown.flops, unknown.energy_joules, unknown.peak_bytes) == (None, None, 7)
    assert totals([]).energy_joules is None


def append_many(path: Path, count: int) -> None:
    for step in range(count):
        append(path, replace(ENTRY, step=None, samples=step))


def test_two_processes_append_to_one_file(path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, 50)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read(path)
    assert sorted(entry.samples for entry in found.entries) == sorted([*range(50)] * 2)
    assert found.cut_lines == 0


def interrupted(meter: Meter, folder: Path) -> None:
    with written(meter, "labels", folder), meter.watch.running():
        meter.answered(prompt=3, cached=2, sampled=2)
        raise KeyboardInterrupt


def test_what_an_interrupted_phase_spent_is_written(tmp_path):
    meter = Meter(SHAPE, gpus=0, devices=1)
    with pytest.raises(KeyboardInterrupt):
        interrupted(meter, tmp_path)
    (entry,) = read(tmp_path / "ledger.jsonl").entries
    assert (entry.phase, entry.step, entry.samples) == ("labels", None, 1)
    assert entry.tokens == Tokens(sampled=2, prefilled=1, prefilled_cached=2)
    assert entry.flops is not None
    assert entry.flops.sample == 2 * 2 * 120 + 2 * 2 * 40 + 16 * 7  # 2 tokens through, 2 rows, 3 + 4 pairs
    assert entry.seconds == meter.watch.seconds > 0
    assert entry.energy_joules is None


def test_a_phase_that_asked_nothing_writes_nothing(tmp_path):
    with written(Meter(SHAPE, gpus=0, devices=1), "labels", tmp_path):
        pass
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_model_that_the_formula_does_not_know_is_said(capsys):
    assert shape_or_none("mine", {"model_type": "mamba"}) is None
    assert "ledger: FLOPs of mine are not counted (model_type 'mamba'" in capsys.readouterr().out
    assert shape_or_none("mine", {"model_type": "llama"}) is None
    assert "its config.json has no 'num_attention_heads'" in capsys.readouterr().out
    windowed = {"model_type": "qwen3", "use_sliding_window": True}
    assert shape_or_none("mine", windowed) is None


def test_energy_is_unknown_without_gpus():
    assert energy_joules(0) is None
