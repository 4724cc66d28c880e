"""The metrics that a run writes, each with its unit, and those of verl's that it leaves out (docs/metrics.md).

Left out is only what is named here: a metric that nobody knows, of a user's own reward or of another verl, is kept.
`<word>` in a name stands for any text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NATS, SHARE, SECONDS, TOKENS, SAMPLES = "nats", "share", "seconds", "tokens", "samples"
COUNT, GIB, VERSIONS, NO_UNIT = "count", "GiB", "weight versions", "-"


@dataclass(frozen=True)
class Name:
    """A metric, or with `<word>` in it a family of them."""

    name: str
    unit: str
    meaning: str
    """One line. Means are over the trained tokens of a step unless it says otherwise."""


METRICS = (
    # What is learned
    Name("teacher_kl", NATS, "reverse KL from the teacher a token: mean of student's minus teacher's log-prob"),
    Name("critic/rewards/mean", SHARE, "samples that give the right answer; with a reward of your own, its mean"),
    Name(
        "val-core/<source>/reward/mean@<n>", SHARE, "the same on the held-out rows of a `data_source`, n answers a row"
    ),
    Name("val-aux/<source>/<statistic>", NO_UNIT, "verl's further statistics of the held-out rows, by their names"),
    Name("advantage/mean", NATS, "mean advantage"),
    Name("advantage/variance", "nats^2", "variance of the advantage; a baseline lowers it"),
    # Answers
    Name("response_length/mean", TOKENS, "length of an answer, what tools wrote left out, mean over samples"),
    Name("response_length/max", TOKENS, "longest answer of the step"),
    Name("response_length/min", TOKENS, "shortest answer of the step"),
    Name("response_length/truncated_share", SHARE, "samples that vLLM cut off before their end"),
    Name("prompt_length/mean", TOKENS, "length of the student's prompt, mean over samples"),
    Name("prompt_length/max", TOKENS, "longest prompt of the step"),
    # Turns and tools
    Name("turns/mean", COUNT, "turns of the student a sample, mean over the samples of loops that take turns"),
    Name("turns/max", COUNT, "most turns of a sample"),
    Name("turns/tokens_mean", TOKENS, "sampled tokens of a turn, mean over turns"),
    Name("turns/read_share", SHARE, "tokens of the responses that the student did not sample: tools and template"),
    Name("turns/teacher_kl_<k>", NATS, "`teacher_kl` of the k-th turn's tokens, k up to 4"),
    Name("teacher/early_turns", COUNT, "turns whose score was asked for before the sample ended, and used"),
    Name("tools/calls_mean", COUNT, "calls a sample, mean over the tool agent's samples"),
    Name("tools/called_share", SHARE, "its samples that call at all"),
    Name("tools/called_again_share", SHARE, "its samples that call more than once"),
    Name("tools/wanted_mean", COUNT, "calls that a row wants (`extra_info.tool_calls`), mean over rows that say it"),
    Name("tools/over_called_share", SHARE, "samples with more calls than their row wants, of rows that say it"),
    Name("tools/unknown_share", SHARE, "calls of a tool that there is not"),
    Name("tools/bad_arguments_share", SHARE, "calls whose arguments are no JSON"),
    Name("tools/cut_share", SHARE, "calls whose answer was cut to `multi_turn.max_tool_response_length`"),
    Name("tools/unread", COUNT, "calls that begin as one and cannot be read, taken for text"),
    Name("tools/left_out", COUNT, "calls of one turn beyond `multi_turn.max_parallel_calls`, not made"),
    Name("tools/unfinished_share", SHARE, "samples that a limit ended with a call and no answer to it"),
    Name("tools/<tool>/calls_mean", COUNT, "calls of this tool a sample"),
    Name("tools/<tool>/failed_share", SHARE, "of its calls, those that ended in an error, which the student reads"),
    Name("tools/<tool>/seconds", SECONDS, "time of such a call, mean"),
    # The update
    Name("actor/loss", "nats, summed as `actor.loss_agg_mode` says", "what is descended; mean over the step's updates"),
    Name("actor/direct_loss", "as `actor/loss`", "a direct loss alone, without an entropy term"),
    Name("actor/kl_loss", "as `actor/loss`", "verl's KL term (`actor.use_kl_loss`), before its coefficient"),
    Name("actor/kl_coef", NO_UNIT, "the coefficient of that term"),
    Name("actor/entropy", NATS, "entropy of the student's next token, mean over the tokens of an update"),
    Name("actor/grad_norm", NO_UNIT, "norm of the gradient before clipping, mean over the step's updates"),
    Name("actor/lr", NO_UNIT, "learning rate of the step"),
    Name("actor/rollout_gap_mean", NATS, "sampler's against trainer's log-prob of a token, absolute, mean"),
    Name("actor/rollout_gap_max", NATS, "the same, largest; near 0 while the weight sync works"),
    Name("actor/ratio_outside_share", SHARE, "tokens whose ratio is outside `method.policy_loss.low` to `.high`"),
    Name(
        "actor/effective_sample_size",
        SHARE,
        "(sum w)^2 / (n sum w^2) of the importance weights, over micro-batches",
    ),
    Name("actor/off_policy_nll", NATS, "cross-entropy of the teacher's own answers, mean over their tokens"),
    Name("actor/divergence", NATS, "divergence of a direct loss at a position"),
    Name(
        "actor/expected_reverse_kl",
        NATS,
        "reverse KL expected at a position, from the tokens of the support and their tail",
    ),
    Name("actor/student_mass", SHARE, "the student's probability of the support (`method.support`)"),
    Name("actor/teacher_mass", SHARE, "the teacher's probability of it"),
    Name("actor/perf/max_memory_allocated_gb", GIB, "most memory that torch had in use on the trainer's device"),
    Name("actor/perf/max_memory_reserved_gb", GIB, "most memory that torch had reserved there"),
    Name("actor/perf/cpu_memory_used_gb", GIB, "main memory in use on the trainer's node"),
    Name("rollout_corr/<statistic>", NO_UNIT, "verl's statistics of `algorithm.rollout_correction`, by their names"),
    # The teacher
    Name("teacher/seconds", SECONDS, "time during which at least one sample was at the teacher"),
    Name("teacher/tokens_per_second", "tokens/s", "tokens of prompts and answers sent, over `teacher/seconds`"),
    Name("teacher/scored", SAMPLES, "samples with a score"),
    Name("teacher/unscored", SAMPLES, "samples that no teacher could score; masked out of the loss"),
    Name("teacher/from_store", SAMPLES, "scored samples that no server was asked for"),
    Name("teacher/requests", COUNT, "HTTP requests since the step before, those of kept answers among them"),
    Name("teacher/sequences", COUNT, "sequences in them, bare prompts too"),
    Name("teacher/tokens", TOKENS, "tokens in them"),
    Name("teacher/cached_share", SHARE, "of these tokens, found in the server's prefix cache"),
    Name("teacher/queue_seconds", SECONDS, "wait of a sequence at the server, mean over sequences"),
    Name("teacher/busy_seconds", SECONDS, "time of requests, added up; over `teacher/seconds`, how many at once"),
    Name(
        "teacher/support_tokens",
        TOKENS,
        "different tokens of a sample that `method.support=student` names, added up over samples",
    ),
    Name(
        "teacher/support_left_out",
        COUNT,
        "entries of the student's support that `method.support_tokens` leaves to the tail",
    ),
    Name("teacher/retries", COUNT, "tries after a first one"),
    Name("teacher/failures", COUNT, "requests that failed"),
    Name("teacher/times_opened", COUNT, "times that a server was left alone after failures"),
    Name("teacher/open_breakers", COUNT, "servers that are left alone now"),
    Name("teacher/store_hits", COUNT, "look-ups that the store answered"),
    Name("teacher/store_misses", COUNT, "look-ups that it could not answer"),
    Name("teacher/store_corrupt", COUNT, "damaged entries that were found in it, and not used"),
    Name("teacher/store_unwritten", COUNT, "scores that it had no room for"),
    Name("teacher/store_bytes", "bytes", "size of the store's file"),
    Name("teacher/server<i>_sequences", COUNT, "sequences of one of several servers"),
    Name("teacher/server<i>_failures", COUNT, "failed requests of one of several servers"),
    Name("teacher/<name>/<counter>", "as `teacher/<counter>`", "of one of several teachers"),
    # What became of every sample and update
    Name("samples/dispatched", SAMPLES, "sent to the agent loop in this step"),
    Name("samples/trained", SAMPLES, "in an update, with at least one trained token"),
    Name("samples/masked", SAMPLES, "in an update, with none: without a score, or left out by a guard"),
    Name("samples/dropped", SAMPLES, "in no update: failed, too old, or of a prompt of which a sample failed"),
    Name("samples/failed", SAMPLES, "of the dropped, those that an error cost (failed_rows.jsonl)"),
    Name("samples/pending", SAMPLES, "under way when the step ended"),
    Name("updates/done", COUNT, "updates with a finite gradient"),
    Name("updates/skipped", COUNT, "updates left out, since their gradient was not finite"),
    Name("updates/bad_in_a_row", COUNT, "skipped, or with weights that no model has, in a row; 0 for a sound step"),
    Name("actor/weight_max", NO_UNIT, "largest trained weight after the update"),
    # How old, and how often
    Name("staleness/samples_<k>", SHARE, "samples begun k weight versions ago"),
    Name("staleness/tokens_mean", VERSIONS, "by which a sampled token lies behind, mean over tokens"),
    Name("staleness/max", VERSIONS, "by which the oldest sample lies behind"),
    Name("staleness/resumed_share", SHARE, "samples that a weight sync interrupted"),
    Name("training/off_policy/evicted_samples", "prompts", "dropped for their age in this step"),
    Name("training/off_policy/evicted_samples_staleness/<statistic>", VERSIONS, "age of those"),
    Name("training/rollout_failure/evicted_samples", "prompts", "failed, and replaced by others"),
    Name("off_policy/rows", SAMPLES, "teacher's own answers that were trained on (`method.off_policy_share`)"),
    Name("off_policy/tokens", TOKENS, "of these answers"),
    Name("off_policy/passes", COUNT, "over the file of these answers, since the run began"),
    Name("replay/drawn", SAMPLES, "drawn from the buffer for this step"),
    Name("replay/trained", SAMPLES, "of these, trained on"),
    Name("replay/refused_<reason>", SAMPLES, "drawn, or offered, and not taken, by reason"),
    Name("replay/returned", SAMPLES, "drawn and put back: they filled no whole number of prompts"),
    Name("replay/rows", SAMPLES, "in the buffer after the step"),
    Name("replay/tokens", TOKENS, "in the buffer after the step"),
    Name("replay/bytes", "bytes", "that the buffer takes"),
    Name("replay/drawable", SAMPLES, "in the buffer that may still be drawn"),
    Name("replay/evicted", SAMPLES, "that made room for newer ones"),
    Name("replay/expired", SAMPLES, "that grew too old"),
    Name("replay/left_out", SAMPLES, "that were never kept: no token of theirs was trained"),
    Name("replay/weight_mean", NO_UNIT, "importance weight of a replayed sample, mean over samples"),
    Name("replay/ess_mean", SHARE, "effective sample size of a drawn sample, mean over samples"),
    Name("replay/age_mean", VERSIONS, "age of a replayed sample, mean over samples"),
    Name("replay/uses_mean", COUNT, "uses of a replayed sample, this one included, mean over samples"),
    Name("replay/reverse_kl", NATS, "reverse KL of the replayed samples under this step's student"),
    Name("guards/truncated_share", SHARE, "samples masked for being cut off"),
    Name("guards/special_token_share", SHARE, "tokens masked by `guards.special_token_mask`"),
    Name("guards/repetition", SHARE, "repeated n-grams of a sample, mean over samples"),
    Name("guards/repetition_flagged", SHARE, "samples above `guards.repetition_limit`"),
    Name("guards/reference_kl", NATS, "reverse KL from the first student"),
    Name("guards/prefix_share", SHARE, "tokens that `guards.prefix_steps` trains in this step"),
    # Time
    Name("timing_s/step", SECONDS, "the step, its checkpoint and weight sync included, validation not"),
    Name("timing_s/gen", SECONDS, "waiting for samples and their scores"),
    Name("timing_s/old_log_prob", SECONDS, "the trainer's own log-probs; next to nothing in bypass mode"),
    Name("timing_s/adv", SECONDS, "advantages"),
    Name("timing_s/update_actor", SECONDS, "updates"),
    Name("timing_s/update_weights", SECONDS, "weight sync"),
    Name("timing_s/save_checkpoint", SECONDS, "checkpoint"),
    Name("timing_s/testing", SECONDS, "validation"),
    Name("timing_s/replay", SECONDS, "keeping samples, drawing and weighing earlier ones"),
    Name("timing_s/<stage>", SECONDS, "another stage that verl times"),
    Name("perf/throughput", "tokens/s/device", "tokens of prompts and answers, over `timing_s/step`"),
    Name("perf/total_num_tokens", TOKENS, "of prompts and answers, each sample's prompt counted"),
    Name("perf/mfu/actor", SHARE, "verl's model FLOPs utilisation of the update"),
    Name("training/epoch", COUNT, "passes over the rows that were finished"),
    Name("training/total_steps", COUNT, "steps that the run will have"),
    Name("training/unix_time", "unix seconds", "when the step ended"),
    # SFT
    Name("train/loss", NATS, "loss a token, mean over examples of each one's mean"),
    Name("train/lr", NO_UNIT, "learning rate that the step used"),
    Name("train/grad_norm", NO_UNIT, "norm of the gradient before clipping"),
    Name("train/tokens", TOKENS, "of the step's examples, prompts included"),
    Name("perf/tokens_per_s", "tokens/s", "those, over `timing_s/step`"),
    Name("perf/max_memory_allocated_gb", GIB, "most memory that torch had in use on the device"),
)

LEFT_OUT = {
    "actor/entropy_loss": "a sum over tokens, which grows with the batch; `actor/entropy` is a mean",
    "actor/pg_loss": "`actor/loss`, where there is no other term",
    "critic/score/<statistic>": "the rewards again",
    "critic/rewards/max": "1 wherever one sample is right",
    "critic/rewards/min": "0 wherever one sample is wrong",
    "critic/advantages/<statistic>": "`advantage/*`",
    "critic/returns/<statistic>": "the advantages again: there is no critic",
    "response_length/clip_ratio": "the batch's longest answers; `response_length/truncated_share` counts cuts",
    "response_length_non_aborted/<statistic>": "`response_length/*` again",
    "response/aborted_ratio": "empty answers, which `response_length/min` shows",
    "prompt_length/min": "says nothing of the run",
    "prompt_length/clip_ratio": "the batch's longest prompts",
    "num_turns/<statistic>": "`turns/*` with the prompt and what tools wrote; 2 where there are no tools",
    "training/num_turns/<statistic>": "the same",
    "val-aux/num_turns/<statistic>": "the same of held-out rows; `val-aux/<source>/tool_calls/mean@<n>` says more",
    "global_seqlen/<statistic>": "tokens of a rank, which balancing makes alike",
    "timing_per_token_ms/<stage>": "`timing_s/*` over tokens",
    "perf/time_per_step": "`timing_s/step`",
    "training/global_step": "`step`",
    "training/off_policy/trajectory_<statistic>": "`staleness/*`, counted from the weights that sampled a token",
    "teacher/pool_unscored": "`teacher/unscored`, kept answers counted too",
    "teacher/cached_tokens": "`teacher/cached_share`",
}
"""Of what verl and the teacher's client report; by name, why."""
ONLY_ABOVE_ZERO = ("perf/mfu/actor",)
"""Left out at 0 as well: verl knows no peak of this device."""


def _pattern(names: Mapping[str, Any]) -> re.Pattern[str]:
    return re.compile("|".join(re.sub(r"<\w+>", ".+", re.escape(name)) for name in names))


_LEFT_OUT, _KNOWN = _pattern(LEFT_OUT), _pattern({metric.name: metric for metric in METRICS})


def is_known(name: str) -> bool:
    """Whether the table has a metric."""
    return _KNOWN.fullmatch(name) is not None


def unit_of(name: str) -> str:
    """The unit of a metric; "" where the table does not have it."""
    return next((metric.unit for metric in METRICS if _pattern({metric.name: 0}).fullmatch(name)), "")


def worth_writing(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics without those of `LEFT_OUT`; what the table does not know is kept."""
    return {
        name: value
        for name, value in metrics.items()
        if not _LEFT_OUT.fullmatch(name) and not (name in ONLY_ABOVE_ZERO and value == 0)
    }


def metrics_table() -> str:
    """The metrics as a table in Markdown."""
    rows = [f"| `{metric.name}` | {metric.unit} | {metric.meaning} |" for metric in METRICS]
    return "\n".join(["| metric | unit | what it says |", "|---|---|---|", *rows])


def left_out_table() -> str:
    """What is left out, as a table in Markdown."""
    return "\n".join(["| left out | since it is |", "|---|---|", *(f"| `{k}` | {v} |" for k, v in LEFT_OUT.items())])
