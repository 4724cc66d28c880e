"""The same held-out prompts over the steps: what was answered, and token by token how far the teacher is from it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from verl_ext.report.blocks import (
    Answers,
    Block,
    Chart,
    Conversation,
    Missing,
    Said,
    Series,
    Table,
    Token,
    TokenAnswer,
    TokenRow,
    Tokens,
)
from verl_ext.report.text import ANSWER, PROMPT, clipped, counted, number, short

ROWS = 16
"""Prompts that are shown."""
TOKENS = 320
"""Tokens that are shown of an answer."""
CHOICES = 5
"""Of the teacher's, at a token."""
WORST = 20
"""Tokens in the list of disagreements."""
STEPS = 12
"""Answers to one prompt, after equal ones in a row are one."""
KEEP = "Training keeps them at each validation (`trainer.test_freq`): `report.keep_samples`, `report.alternatives`."
Sample = Mapping[str, Any]


def by_row(samples: Iterable[Sample]) -> dict[int, dict[int, Sample]]:
    """Row -> step -> sample, both in order; of a step that was repeated the last one."""
    found: dict[int, dict[int, Sample]] = {}
    for sample in samples:
        found.setdefault(int(sample["row"]), {})[int(sample["step"])] = sample
    return {row: {step: found[row][step] for step in sorted(found[row])} for row in sorted(found)}


def answers_of(samples: Sequence[Sample]) -> list[Block]:
    """Each prompt's answers over the steps."""
    if not samples:
        return [Missing("samples.jsonl, answers to the same held-out prompts over the steps", KEEP)]
    rows = by_row(samples)
    shown = tuple(_conversation(row, steps) for row, steps in list(rows.items())[:ROWS])
    left = f" {len(rows) - ROWS} further prompts are left out." if len(rows) > ROWS else ""
    return [Answers(shown)] if not left else [Answers(shown), Missing(left.strip(" ."), "They are in samples.jsonl.")]


def _conversation(row: int, steps: Mapping[int, Sample]) -> Conversation:
    stretches: list[list[Sample]] = []
    for sample in steps.values():
        if stretches and all(stretches[-1][-1][key] == sample[key] for key in ("answer", "score", "finish")):
            stretches[-1].append(sample)
        else:
            stretches.append([sample])
    first = next(iter(steps.values()))
    prompt, left = clipped(first["prompt"], PROMPT)
    return Conversation(f"row {row}", prompt, left, _truth(first), tuple(_said(_thinned(stretches))))


def _thinned(stretches: list[list[Sample]]) -> list[list[Sample] | int]:
    """The first and the last ones, and how many lie between them."""
    if len(stretches) <= STEPS:
        return [*stretches]
    half = STEPS // 2
    return [*stretches[:half], len(stretches) - STEPS, *stretches[-half:]]


def _said(stretches: Iterable[list[Sample] | int]) -> Iterable[Said]:
    for each in stretches:
        if isinstance(each, int):
            yield Said("…", f"{counted(each, 'further answer')} left out", 0, None, "")
            continue
        when = _when(int(each[0]["step"])) + (f" to {each[-1]['step']}" if len(each) > 1 else "")
        text, left = clipped(each[0]["answer"], ANSWER)
        left += each[0].get("cut_characters", 0)
        yield Said(when, text, left, each[0]["score"], short(str(each[0]["finish"]), 20))


def _when(step: int) -> str:
    return "before training" if step == 0 else str(step)


def _truth(sample: Sample) -> str | None:
    return None if sample["truth"] is None else short(str(sample["truth"]))


def token_kind(text: str, first: bool = False) -> str:
    """The class of a token by its text."""
    if not text:
        return "part of a character"
    if re.fullmatch(r"<\|.*\|>|</?s>|<(eos|bos|pad|unk)>", text):
        return "special"
    if text.isspace():
        return "line break" if "\n" in text else "space"
    bare = text.strip()
    if any(character.isdigit() for character in bare):
        return "digits"
    if not any(character.isalpha() for character in bare):
        return "punctuation"
    return "start of a word" if first or text[0].isspace() else "inside a word"


def tokens_in(sample: Sample) -> list[Token]:
    """The tokens of a sample. Raises ValueError where its lists are not as long as each other."""
    texts: Sequence[str] = sample["tokens"]
    columns = [sample[key] or [None] * len(texts) for key in ("student_logprobs", "teacher_logprobs", "alternatives")]
    if any(len(column) != len(texts) for column in columns):
        lengths = ", ".join(str(len(column)) for column in columns)
        raise ValueError(
            f"samples.jsonl: step {sample['step']}, row {sample['row']}: {len(texts)} tokens, but {lengths} log-probs; "
            "delete the line"
        )
    return [
        Token(
            short(text, 40) if len(text) > 40 else text,
            _finite(student),
            _finite(teacher),
            token_kind(text, number_of == 0),
            tuple((short(name, 40), value) for name, value in (others or [])[:CHOICES] if _finite(value) is not None),
        )
        for number_of, (text, student, teacher, others) in enumerate(zip(texts, *columns, strict=True))
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def kls(tokens: Iterable[Token]) -> np.ndarray:
    """Those that are known, nats."""
    return np.array([token.kl for token in tokens if token.kl is not None], dtype=np.float64)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def tokens_of(samples: Sequence[Sample]) -> list[Block]:
    """The token view: answers of the first and the last step, and where student and teacher disagree."""
    scored = [sample for sample in samples if sample["student_logprobs"] and sample["teacher_logprobs"]]
    if not scored:
        return [Missing("log-probs of sampled answers, token by token (samples.jsonl)", KEEP)]
    rows = by_row(scored)
    steps = sorted({step for each in rows.values() for step in each})
    chosen = [steps[0], steps[-1]] if len(steps) > 1 else steps
    read = {row: {step: tokens_in(each[step]) for step in chosen if step in each} for row, each in rows.items()}
    order = sorted(read, key=lambda row: -max((float(kls(each).sum()) for each in read[row].values()), default=0.0))
    shown = [row for row in order if read[row]][:ROWS]
    view = Tokens(tuple(_token_row(row, rows[row], read[row]) for row in shown), _sentence(read, chosen))
    return [view, *_disagreements(read, chosen), *_by_kind(read, chosen), *_by_position(read, chosen)]


def _sentence(read: Mapping[int, Mapping[int, list[Token]]], chosen: Sequence[int]) -> str:
    found = []
    for step in chosen:
        values = kls(token for each in read.values() for token in each.get(step, ()))
        found.append(f"{number(_mean(values), 3)} nats a token {_at(step)} ({values.size:,} tokens)")
    text = "Mean reverse KL, student minus teacher: " + ", ".join(found)
    shown = f"{min(len(read), ROWS)} of {counted(len(read), 'prompt')}"
    return f"{text}. Answers with the largest disagreement come first; {shown} are shown."


def _at(step: int) -> str:
    return "before training" if step == 0 else f"at step {step}"


def _token_row(row: int, steps: Mapping[int, Sample], read: Mapping[int, list[Token]]) -> TokenRow:
    prompt, left = clipped(next(iter(steps.values()))["prompt"], PROMPT)
    answers = []
    for step, tokens in read.items():
        values = kls(tokens)
        worst = max(tokens, key=lambda token: -math.inf if token.kl is None else token.kl, default=None)
        said = "No token has both log-probs."
        if values.size and worst is not None:
            said = f"Mean {number(float(values.mean()), 3)} nats over {counted(len(tokens), 'token')}"
            said += f"; largest {number(worst.kl, 3)} at “{short(worst.text, 20)}”."
        answers.append(
            TokenAnswer(
                _at(step), tuple(tokens[:TOKENS]), max(0, len(tokens) - TOKENS) + steps[step].get("cut_tokens", 0), said
            )
        )
    return TokenRow(f"row {row}", prompt, left, tuple(answers))


def _disagreements(read: Mapping[int, Mapping[int, list[Token]]], chosen: Sequence[int]) -> list[Block]:
    """Tables of the tokens of largest reverse KL, one a step."""
    found: list[Block] = []
    for step in chosen:
        every = [
            (token.kl, row, at, token, each[step])
            for row, each in read.items()
            if step in each
            for at, token in enumerate(each[step])
            if token.kl is not None
        ]
        every.sort(key=lambda one: -one[0])
        table = tuple(
            (
                short("".join(other.text for other in tokens[max(0, at - 6) : at]) + f"[{token.text}]", 60),
                _first_choice(token),
                str(row),
                str(at),
                number(kl, 3),
                number(token.student, 3),
                number(token.teacher, 3),
            )
            for kl, row, at, token, tokens in every[:WORST]
        )
        columns = ("token, after what", "teacher's choice", "row", "position", "reverse KL", "student", "teacher")
        found.append(
            Table(f"Largest disagreements {_at(step)}, nats", columns, table, texts=2, folded=step != chosen[-1])
        )
    return found


def _first_choice(token: Token) -> str:
    if not token.alternatives:
        return "–"
    name, logprob = token.alternatives[0]
    return f"{short(name, 20)} ({math.exp(min(logprob, 0.0)):.2f})"


def _by_kind(read: Mapping[int, Mapping[int, list[Token]]], chosen: Sequence[int]) -> list[Block]:
    """Mean and share of the reverse KL, by token class and step."""
    kinds: dict[str, dict[int, list[float]]] = {}
    for each in read.values():
        for step in chosen:
            for token in each.get(step, ()):
                if token.kl is not None:
                    kinds.setdefault(token.kind, {}).setdefault(step, []).append(token.kl)
    first = chosen[0]
    order = sorted(kinds, key=lambda kind: -sum(kinds[kind].get(first, [])))
    rows = []
    for kind in order:
        cells = []
        for step in chosen:
            values = kinds[kind].get(step, [])
            cells += [f"{len(values):,}", number(float(np.mean(values)), 3) if values else "–", number(sum(values), 3)]
        rows.append((kind, *cells))
    columns = [f"{_at(step)}: {name}" for step in chosen for name in ("tokens", "mean", "sum")]
    return [Table("Reverse KL by token class, nats", ("class", *columns), tuple(rows))]


def _by_position(read: Mapping[int, Mapping[int, list[Token]]], chosen: Sequence[int]) -> list[Block]:
    """Mean reverse KL at each place of an answer."""
    series, said = [], []
    for number_of, step in enumerate(chosen):
        places: dict[int, list[float]] = {}
        for each in read.values():
            for at, token in enumerate(each.get(step, ())):
                if token.kl is not None:
                    places.setdefault(at, []).append(token.kl)
        x = np.array(sorted(places), dtype=np.float64)
        y = np.array([float(np.mean(places[int(at)])) for at in x])
        series.append(Series(_at(step), x, y, colour=(7, 2)[number_of], key=f"tokens-{step}"))
        if y.size:
            said.append(f"{_at(step)} it is largest at position {number(x[y.argmax()])} ({number(float(y.max()), 3)})")
    sentence = "Mean over the answers that are that long: " + ", ".join(said) + "."
    return [
        Chart(
            "Reverse KL by position",
            "nats, mean at a position",
            "position in the answer, from 0",
            tuple(series),
            sentence,
            wide=True,
        )
    ]
