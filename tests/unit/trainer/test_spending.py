"""What a run writes into its ledger, worked out by hand from what was sampled, scored and read."""

from pathlib import Path

from verl_ext.ledger import ledger
from verl_ext.ledger.entries import Tokens
from verl_ext.ledger.flops import Work, backward, forward
from verl_ext.trainer import spending
from verl_ext.trainer.engine import READ

ANSWERS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 15]]
READS = {f"{READ}tokens": [30.0, 50.0], f"{READ}pairs": [100.0, 300.0], f"{READ}rows": [10.0, 20.0]}


def entries(run):
    return ledger.read(Path(run.config.run_dir) / ledger.FILE).entries


def prompts(run) -> int:
    """Tokens of the students' prompts, all samples."""
    return sum(len(request["prompt_ids"]) for request in run.sampler.requests)


def test_a_step_by_hand(make_run):
    run = make_run("method.student_logprobs=old", "algorithm.rollout_correction.bypass_mode=false")
    run.sampler.answers, run.actor.read = ANSWERS, dict(READS)
    run.fit()
    (entry,), (metrics,) = entries(run), run.metrics
    assert (entry.phase, entry.step, entry.samples, entry.devices) == ("train", 1, 4, 1)
    assert entry.seconds == metrics["timing_s/step"]
    scored = metrics["teacher/tokens"] * (1 - metrics["teacher/cached_share"])
    # One mini-batch, of one rank, whose two numbers verl takes the mean of.
    assert entry.tokens == Tokens(sampled=11, prefilled=prompts(run), scored=round(scored), trained=40)
    student, read = run.trainer.spending._student, Work(40, 200, 15)
    assert entry.flops.train_forward == 2 * forward(student, read)  # once more for the log-probs before the update
    assert entry.flops.train_backward == backward(student, read)
    assert entry.flops.score > 0
    assert not any(key.startswith(READ) for key in metrics)


def test_a_validation_is_an_entry_of_its_own(make_run):
    run = make_run("trainer.test_freq=1", "trainer.val_before_train=true")
    run.sampler.answers = [[5, 6, 7]]
    run.fit()
    found = entries(run)
    assert [(entry.phase, entry.step, entry.samples) for entry in found] == [
        ("evaluate", 0, 6),
        ("evaluate", 1, 6),
        ("train", 1, 4),
    ]
    assert [entry.tokens.sampled for entry in found] == [18, 18, 12]
    assert sum(entry.tokens.prefilled for entry in found) == prompts(run)
    assert found[1].seconds <= run.metrics[0]["timing_s/testing"]
    assert found[0].tokens.trained == found[0].tokens.scored == 0


def test_a_step_done_again_is_told_apart(make_run):
    run = make_run("trainer.total_training_steps=2").fit()
    first = entries(run)
    run.trainer.spending.stepped(2, 1.0, [], [], {})
    found = ledger.read(Path(run.config.run_dir) / ledger.FILE)
    assert [entry.step for entry in found.entries] == [1, 2]
    assert found.abandoned == (first[1],)


def test_what_the_store_answers_no_teacher_reads(make_run, tmp_path):
    store = f"teacher.store_path={tmp_path}/scores"
    spent = []
    for name in ("first", "again"):
        run = make_run(store, "teacher.fingerprint=tests", f"run_dir={tmp_path}/{name}", "seeded_rollout=true")
        spent.append(entries(run.fit())[0])
        run.close()
    assert spent[0].tokens.scored > 0 < spent[0].flops.score
    assert spent[1].tokens.scored == spent[1].flops.score == 0
    assert spent[1].tokens.sampled == spent[0].tokens.sampled > 0


def test_an_answer_in_two_parts_is_read_twice():
    note = {"sampled_tokens": 5, "num_cached_tokens": 4, "tokens_by_version": [[1, 2], [2, 3]]}
    tokens, work = spending._of_sample(note, {"prompt_len": 6, "response_len": 5})
    # 2 of the prompt's 6 tokens, then all of it with the first 2 that were drawn.
    assert tokens == Tokens(sampled=5, prefilled=2 + 8, prefilled_cached=4)
    assert work.tokens == (6 - 4) + 4 + 7  # 10 tokens but the last, and 7 of the 8 a second time


def test_what_tools_answer_is_read_and_not_sampled():
    note = {"sampled_tokens": 3, "num_cached_tokens": None, "tokens_by_version": [[1, 3]]}
    tokens, _ = spending._of_sample(note, {"prompt_len": 6, "response_len": 5})
    assert tokens == Tokens(sampled=3, prefilled=8)


def test_a_dropped_sample_was_paid_for(make_run):
    run = make_run().fit()
    run.trainer.spending.stepped(2, 1.0, [], [{"prompt_len": 6, "response_len": 5}], {})
    assert entries(run)[-1].tokens == Tokens(sampled=5, prefilled=6)
    assert entries(run)[-1].samples == 1
