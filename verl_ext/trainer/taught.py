"""The teacher's own answers that steps train on (`method.off_policy_share`): the file, and what goes with them.

Two files hold such answers: conversations, each with an answer as its last message (`verl-opd data teacher=...`), and
those of `verl-opd generate view=teacher`, token by token. Either way the student sees its own prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from verl_ext.data.conversations import from_jsonl, from_parquet
from verl_ext.run.models import render_chat
from verl_ext.sampling.answers import METADATA, Answers
from verl_ext.trainer.off_policy import KEY
from verl_ext.trainer.replay.storage import Rows


@dataclass(frozen=True)
class TaughtAnswers:
    """Answers of the teacher, each with the prompt that the student sees."""

    prompts: list[list[int]]
    """Token ids."""
    responses: list[list[int]]
    """Token ids, the end token among them."""
    truncated: list[bool]
    """Cut off before their end: such an answer has no end token."""
    said: str
    """Whose answers they are, in a line."""

    def __len__(self) -> int:
        return len(self.prompts)

    def places(self, first: int, count: int, seed: int) -> list[int]:
        """Which answers are the `first`, `first + 1`, ... of an endless reading, in another order at every pass."""
        found = []
        for number in range(first, first + count):
            passes, place = divmod(number, len(self))
            found.append(_order(len(self), seed, passes)[place])
        return found

    def rows(self, places: Sequence[int], *, version: int, top_k: int) -> Rows:
        """These answers as rows of a batch that nobody scored: `top_k` teacher's tokens a position, all of them 0."""
        ids = [self.prompts[place] + self.responses[place] for place in places]
        prompts = np.array([len(self.prompts[place]) for place in places], dtype=np.int32)
        lengths = np.array([len(row) for row in ids], dtype=np.int32)
        tokens = int(lengths.sum())
        in_response = np.concatenate(
            [np.arange(length) >= prompt for length, prompt in zip(lengths, prompts, strict=True)]
        )
        return Rows(
            token_ids_N=torch.tensor([token for row in ids for token in row], dtype=torch.int32),
            rollout_logprobs_N=torch.zeros(tokens),
            teacher_logprobs_N=torch.zeros(tokens),
            mask_N=torch.from_numpy(in_response),
            top_ids_NK=torch.zeros(tokens, top_k, dtype=torch.int32),
            top_logprobs_NK=torch.zeros(tokens, top_k),
            lengths_B=lengths,
            prompt_lengths_B=prompts,
            rewards_B=np.zeros(len(ids), dtype=np.float32),
            truncated_B=np.array([self.truncated[place] for place in places], dtype=bool),
            first_versions_B=np.full(len(ids), version, dtype=np.int32),
            last_versions_B=np.full(len(ids), version, dtype=np.int32),
        )


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, passes: int) -> list[int]:
    return np.random.default_rng([seed, passes]).permutation(rows).tolist()


def read_answers(path: str, tokenizer: Any, template_kwargs: Mapping[str, Any], data: Any) -> TaughtAnswers:
    """The answers of a file as the student reads them.

    Args:
        data: the run's section `data`, for the longest prompt and response.

    Raises:
        ValueError: naming the key and the row, if the file is none of the two, or an answer does not fit.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"{KEY}={path}: no such file; make it with `verl-opd data teacher=MODEL`")
    if file.suffix == ".parquet" and METADATA in (pq.read_schema(file).metadata or {}):
        found = _of_stage(path, tokenizer, template_kwargs)
    else:
        found = _of_conversations(file, tokenizer, template_kwargs)
    for kind, rows, longest in (
        ("prompt", found.prompts, data.max_prompt_length),
        ("response", found.responses, data.max_response_length),
    ):
        for number, ids in enumerate(rows):
            if not 0 < len(ids) <= longest:
                raise ValueError(
                    f"{KEY}={path} row {number}: its {kind} has {len(ids)} tokens, allowed are 1 to {longest}; raise "
                    f"data.max_{kind}_length, or take the row out"
                )
    return found


def _of_conversations(file: Path, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> TaughtAnswers:
    try:
        rows = from_parquet(file) if file.suffix == ".parquet" else from_jsonl(file)
    except ValueError as error:
        raise ValueError(f"{KEY}={error}") from None
    prompts, responses = [], []
    for number, row in enumerate(rows):
        *asked, answer = row["messages"]
        if answer["role"] != "assistant" or not asked:
            raise ValueError(
                f"{KEY}={file} row {number} ends with a message of role {answer['role']!r}: an answer to train on is "
                "the last of several, the assistant's; take the row out"
            )
        prompts.append(render_chat(tokenizer, asked, template_kwargs))
        text = tokenizer.encode(answer["content"], add_special_tokens=False, split_special_tokens=True)
        responses.append([*text, tokenizer.eos_token_id])
    if not rows:
        raise ValueError(f"{KEY}={file} holds no answers; give a file that does")
    return TaughtAnswers(prompts, responses, [False] * len(rows), f"{len(rows):,} conversations")


def _of_stage(path: str, tokenizer: Any, template_kwargs: Mapping[str, Any]) -> TaughtAnswers:
    answers = Answers.read(KEY, path)
    table = answers.table
    messages, texts = table["prompt"].to_pylist(), table["response"].to_pylist()
    responses, truncated = table["response_ids"].to_pylist(), table["truncated"].to_pylist()
    if not responses:
        raise ValueError(f"{KEY}={path} holds no answers; give a file that does")
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
    other = sum(mine != theirs for mine, theirs in zip(decoded, texts, strict=True))
    if 2 * other > len(texts):  # a few may differ where an answer is cut off inside a character
        raise ValueError(
            f"{KEY}={path}: {other} of {len(texts)} answers read otherwise with the student's tokenizer; give answers "
            f"of a model with the student's tokens, not of {answers.model}"
        )
    prompts = [render_chat(tokenizer, asked, template_kwargs) for asked in messages]
    cut = f", {sum(truncated):,} of them cut off" if any(truncated) else ""
    said = f"{len(responses):,} answers of {answers.model}, which saw the {answers.view}'s prompt{cut}"
    return TaughtAnswers(prompts, responses, truncated, said)
