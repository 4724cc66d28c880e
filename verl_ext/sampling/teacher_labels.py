"""Sample the prompted teacher's answers and write them as training rows: the teacher part of `recipe.create_data`.

`answers.jsonl`, the journal, is what costs time. The other files are made from it: conversations.jsonl,
conversations.parquet, labels_manifest.json.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from verl_ext.data import conversations as labels
from verl_ext.data.rows import MOST_LABELS, SPLITS, known_labels, label_set_of, without_rows
from verl_ext.ledger.entries import LABELS
from verl_ext.ledger.meter import written
from verl_ext.run.api_key import check_key_name
from verl_ext.run.files import write_atomically, write_json
from verl_ext.run.outputs import is_complete
from verl_ext.run.settings import above, within
from verl_ext.sampling.resume import Journal
from verl_ext.sampling.served import ServedSampler
from verl_ext.sampling.types import Answer, EngineConfig, Request, Sampler, SamplingConfig
from verl_ext.sampling.vllm import VllmSampler, hash_of_sampler

SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|</?s>|<(?:eos|bos|pad|start_of_turn|end_of_turn)>|\[/?INST\]")
"""What looks like a special token, where there is no tokenizer to ask."""
FILES = ("conversations.jsonl", "conversations.parquet")


@dataclass(frozen=True)
class LabelConfig:
    """How the teacher's answers become labels; only with teacher=MODEL."""

    splits: list[str] = field(default_factory=lambda: ["train"])
    """Which of train, heldout, edge are labelled; all three for Tinker's own 2,100 rows."""
    extract: str = "final_answer"
    """Where the label stands: `final_answer`, after `Final Answer: `; `whole`, the answer is the label alone."""
    policy: str = "tinker"
    """`tinker`: first match, any word; `strict`: the label of `label_set` that a person would read; `exact`: that label
    character for character. The last two take no answer that was cut off. Misses are dropped, and counted."""
    label_set: list[str] = field(default_factory=list)
    """All labels of the task; empty: the right answers of the rows, or the 13 languages where those are not known."""
    urls: list[str] = field(default_factory=list)
    """Base URLs of servers that serve `teacher`, e.g. http://10.0.0.2:30000; empty: vLLM in this process."""
    api_key_env: str = "TEACHER_API_KEY"
    """Environment variable with the servers' API key (see `teacher.api_key_env`)."""
    max_concurrency: int = 64
    """Requests in flight at the servers, >= 1."""
    request_timeout_s: float = 600.0
    """Seconds that one request may take at a server, > 0."""
    max_retries: int = 5
    """Further tries of one request after a lost connection, a timeout or a 5xx, >= 0."""
    chunk: int = 512
    """Answers that are sampled together and then written to the journal, >= 1: the most that an interruption costs."""

    def __post_init__(self) -> None:
        if not self.splits or not set(self.splits) <= set(SPLITS):
            raise ValueError(f"labels.splits={self.splits}: expected some of {', '.join(SPLITS)}")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"labels.splits={self.splits}: names a split twice; its rows would count twice")
        if self.extract not in labels.PATTERNS:
            raise ValueError(f"labels.extract={self.extract}: expected one of {', '.join(labels.PATTERNS)}")
        if self.policy not in labels.POLICIES:
            raise ValueError(f"labels.policy={self.policy}: expected one of {', '.join(labels.POLICIES)}")
        for key, least in (("max_concurrency", 1), ("chunk", 1), ("max_retries", 0)):
            within(f"labels.{key}", vars(self)[key], least, float("inf"))
        above("labels.request_timeout_s", self.request_timeout_s, 0)
        check_key_name("labels.api_key_env", self.api_key_env)


def served_sampler(teacher: str, config: LabelConfig, sampling: SamplingConfig) -> ServedSampler:
    return ServedSampler(
        config.urls,
        teacher,
        sampling,
        max_concurrency=config.max_concurrency,
        timeout_s=config.request_timeout_s,
        max_retries=config.max_retries,
        api_key_env=config.api_key_env,
    )


def make_conversations(
    rows: Sequence[dict[str, Any]], answers: dict[int, Answer], config: LabelConfig, label_set: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Conversations in input order, and the rejected rows, each with its answer and the reason."""
    kept, rejected = [], []
    for row in rows:
        index = row["extra_info"]["index"]
        answer = answers[index]
        reading = labels.read_label(answer.text, config.extract, config.policy, label_set)
        if config.policy != "tinker" and answer.finish != "stop":
            reading = labels.Reading("", f"the answer was cut off after {answer.tokens} tokens (sampling.max_tokens)")
        if reading.reason:
            rejected.append({"row": index, "reason": reading.reason, "answer": answer.text})
        else:
            kept.append(labels.conversation(row, reading.label))
    return kept, rejected


def gold_agreement(conversations: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many of the teacher's labels are the right ones, among the rows where that is known."""
    known = [c for c in conversations if c["label"]]
    return {"rows": len(known), "right": sum(c["messages"][-1]["content"] == c["label"] for c in known)}


@dataclass(frozen=True)
class LabelRun:
    """One job: whose answers, to which rows, drawn and read how, and where they go."""

    teacher: str
    """Folder or hub name of the model; with `labels.urls`, the name under which it is served."""
    labels: LabelConfig
    sampling: SamplingConfig
    engine: EngineConfig
    rows: list[dict[str, Any]]
    """Rows of `recipe.create_data`, in input order."""
    out_dir: Path
    facts: dict[str, Any]
    """What the caller knows for the manifest: package version, hash of the prompt."""
    overwrite: bool

    @property
    def label_set(self) -> list[str]:
        return self.labels.label_set or label_set_of(self.rows)

    def requests(self) -> list[Request]:
        return [Request(row["extra_info"]["index"], row["teacher_messages"]) for row in self.rows]

    def sampled_under(self) -> dict[str, Any]:
        """What decides the answers. How labels are read from them is no part: reading again costs nothing."""
        messages = json.dumps([asdict(request) for request in self.requests()])
        return {
            "model": {"served_as": self.teacher} if self.labels.urls else hash_of_sampler(self.teacher),
            "rows_sha256": hashlib.sha256(messages.encode()).hexdigest(),
            "sampling": asdict(self.sampling),
            "dtype": "" if self.labels.urls else self.engine.dtype,
        }

    @contextmanager
    def sampler(self, missing: Sequence[Request]) -> Iterator[Sampler]:
        if not self.labels.urls:
            with VllmSampler(self.teacher, self.sampling, self.engine, missing) as sampler:
                yield sampler
            return
        for request in missing:
            if found := SPECIAL.search("\n".join(message["content"] for message in request.messages)):
                raise ValueError(
                    f"row {request.index} holds {found[0]} as text, which a server reads as a token of its own and "
                    "everything here as plain text; leave labels.urls out (vLLM in this process), or clean the row"
                )
        served = served_sampler(self.teacher, self.labels, self.sampling)
        if self.teacher not in (offered := served.served_models()):
            raise ValueError(
                f"teacher={self.teacher}: {self.labels.urls[0]} serves {', '.join(offered)}; give one of them"
            )
        yield served


def create_labels(run: LabelRun) -> str:
    """Sample what is missing, write the files; returns the line to print."""
    run.out_dir.mkdir(parents=True, exist_ok=True)
    sampled_under = run.sampled_under()
    reading = {"extract": run.labels.extract, "policy": run.labels.policy, "label_set": run.label_set}
    if is_complete(run.out_dir, "labels_manifest.json", FILES, sampled_under | reading, run.overwrite):
        return f"{run.out_dir}: labels up to date"
    journal = Journal(run.out_dir / "answers.jsonl", sampled_under, run.overwrite, Answer)
    missing = [request for request in run.requests() if request.index not in journal.answers]
    took = None
    if missing:
        with run.sampler(missing) as sampler, written(sampler.meter, LABELS, run.out_dir):
            took = journal.fill(sampler.answer, missing, run.labels.chunk, "labels")
    kept, rejected = make_conversations(run.rows, journal.answers, run.labels, run.label_set)
    if not kept:
        raise ValueError(
            f"none of the {len(rejected)} answers holds a label by labels.extract={run.labels.extract}; the first "
            f"says {rejected[0]['answer'][:80]!r} ({rejected[0]['reason']}). The answers are kept: set labels.extract, "
            "labels.label_set or the policy, and run this again"
        )
    contents = dict(zip(FILES, (labels.to_jsonl(kept, columns=("messages",)), labels.to_parquet(kept)), strict=True))
    given = Counter(c["messages"][-1]["content"] for c in kept)
    known = known_labels(run.rows)
    unseen = without_rows(run.labels.label_set or (known if len(known) <= MOST_LABELS else ()), given)
    manifest = run.facts | {
        "teacher": run.teacher,
        "settings": sampled_under | reading,
        "counts": {"rows": len(run.rows), "kept": len(kept), "rejected": len(rejected), "labels": dict(given)},
        "labels_without_rows": unseen,
        "gold": gold_agreement(kept),
        "rejected": rejected,
        "last_sampling": took,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    write_json(run.out_dir / "labels_manifest.json", manifest)
    for name, content in contents.items():
        write_atomically(run.out_dir / name, content)
    rate = f", {took['tokens_per_second']:,.0f} tokens/s" if took else ", nothing to sample"
    lines = [f"{run.out_dir}: {len(kept)} labelled rows, {len(rejected)} rejected{rate}"]
    if rejected:
        reason, count = Counter(one["reason"] for one in rejected).most_common(1)[0]
        lines.append(f"most often rejected ({count} rows): {reason}; all of them: labels_manifest.json")
    if unseen:
        lines.append(
            f"warning: no row has the label {', '.join(unseen)}: a student cannot learn it; look at the rejected "
            "answers, or leave it out of labels.label_set"
        )
    return "\n".join(lines)
