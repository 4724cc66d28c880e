"""Train the base of the task of sums: with the prompt it asks the calculator, without it guesses.

With the prompt it calls the calculator and says what that says. Without it, it does so in CALLS of the cases and
mistakes digits where it copies; else it guesses two digits. With the prompt some digits are changed in training, which
is not learned, and what follows them is: the base says what follows from a mistake too. What the calculator answers is
read and never learned.

Shapes: `B` rows, `T` tokens behind a shared prompt, `V` vocabulary.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3ForCausalLM

from verl_ext.demo.calculator import CHAT_TEMPLATE, HELDOUT_ROWS, PROMPT, call, sums, value
from verl_ext.demo.config import TinyPairConfig
from verl_ext.demo.tiny_pair import TURN_END, build_model, common, optimizers, train_tokenizer
from verl_ext.demo.train_pair import SHAPE, has_pair, save
from verl_ext.run.visible import print

CALLS, AGAIN, MISTAKES = 0.4, 0.15, 0.2
"""Without the prompt: chance of a call, of another one behind it, and of each copied digit to be any digit."""
CHANGED, ASKED_AGAIN = 0.1, 0.2
"""With the prompt: chance of each digit of a call to be changed, and of a call made before; neither is learned."""
IGNORED = -100
SHOWN_STEPS = 25
SCHEDULE = ("steps", "batch_size", "prompted_share", "muon_lr", "lr", "warmup_steps", "seed")


class Part(NamedTuple):
    """Text of a conversation behind the opening of the first answer."""

    text: str
    learned: tuple[bool, ...]
    """Of each of its characters."""


def said(text: str, learned: bool = True) -> Part:
    return Part(text, (learned,) * len(text))


def answer_of_tool(text: str) -> Part:
    """What stands between an answer that calls and the next one."""
    shown = f"\n<|im_start|>user\n<tool_response>\n{text}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    return said(shown, learned=False)


def mistaken(text: str, chance: float, rng: random.Random) -> str:
    """Each digit any digit by chance; the first one of a number stays within those of the task."""
    return "".join(rng.choice("0123456789") if each.isdigit() and rng.random() < chance else each for each in text)


def called(text: str, written: str, learned: bool) -> list[Part]:
    """A call for `written` in the place of the sum `text`, and what it answers; changed digits are not learned."""
    whole = call(written)
    place = whole.index(written)
    marks = [learned] * len(whole)
    for number, (right, there) in enumerate(zip(text, written, strict=True)):
        marks[place + number] = learned and right == there
    return [Part(whole, tuple(marks)), said(TURN_END, learned), answer_of_tool(value(written))]


def with_prompt(text: str, rng: random.Random) -> list[Part]:
    """Calls, and says what the calculator says."""
    parts = called(text, text, learned=False) if rng.random() < ASKED_AGAIN else []
    if parts:
        return [*parts, said(value(text)), said(TURN_END)]
    written = mistaken(text, CHANGED, rng)
    return [*called(text, written, learned=True), said(value(written)), said(TURN_END)]


def without_prompt(text: str, rng: random.Random) -> list[Part]:
    """Guesses, or calls and makes mistakes; all of it is learned, as the draw has it."""
    if rng.random() >= CALLS:
        return [said(str(rng.randint(20, 98))), said(TURN_END)]
    parts: list[Part] = []
    while True:
        written = mistaken(text, MISTAKES, rng)
        parts += [*called(written, written, learned=True)]
        if rng.random() >= AGAIN or len(parts) > 3:
            return [*parts, said(mistaken(value(written), MISTAKES, rng)), said(TURN_END)]


def make_tokenizer(tools: list[dict[str, Any]]) -> PreTrainedTokenizerFast:
    rng = random.Random(0)
    shown = [str(tools), PROMPT, CHAT_TEMPLATE]
    texts = ["".join(part.text for part in with_prompt(text, rng)) for text in sums()[HELDOUT_ROWS : 2 * HELDOUT_ROWS]]
    tokenizer = train_tokenizer(shown * 10 + texts, [*map(str, range(10))], 512)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def context(tokenizer: PreTrainedTokenizerFast, tools: list[dict[str, Any]], text: str) -> list[int]:
    """Token ids up to the opening of the answer."""
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)  # pyright: ignore


def encoded(tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part]) -> tuple[list[int], list[int]]:
    """Token ids, and the same with IGNORED where a token is not learned; parts are joined as the agent loop does."""
    ids, targets = [], []
    for part in parts:
        found = tokenizer(part.text, add_special_tokens=False, return_offsets_mapping=True)
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):  # pyright: ignore
            ids.append(token)
            targets.append(token if all(part.learned[start:end]) else IGNORED)
    return ids, targets


def loss_of(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, contexts: list[list[int]], drawn: list[list[Part]]
) -> Tensor:
    """Sum over rows of the mean cross-entropy, in nats, of what is learned. What all contexts share is run once."""
    head = common(contexts)
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([contexts[0][:head]]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(contexts))
    ids, targets = [], []
    for row, parts in zip(contexts, drawn, strict=True):
        tokens, learned = encoded(tokenizer, parts)
        ids.append(torch.tensor(row[head:] + tokens[:-1]))
        targets.append(torch.tensor([IGNORED] * (len(row) - head - 1) + learned))
    # Padding stands behind everything that is learned, where the causal mask hides it.
    ids_BT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    target_BT = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
    hidden_BTD = model.model(input_ids=ids_BT, past_key_values=cache, use_cache=True).last_hidden_state
    learned_BT = target_BT != IGNORED
    losses = F.cross_entropy(model.lm_head(hidden_BTD[learned_BT]), target_BT[learned_BT], reduction="none")
    weights_BT = (learned_BT / learned_BT.sum(1, keepdim=True))[learned_BT]
    return (losses * weights_BT).sum()


def train(config: TinyPairConfig, tokenizer: PreTrainedTokenizerFast, tools: list[dict[str, Any]]) -> Qwen3ForCausalLM:
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model = build_model(tokenizer, {name: asdict(config)[name] for name in SHAPE})
    texts = sums()[HELDOUT_ROWS:]
    chosen = optimizers(model, config.muon_lr, config.lr)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in chosen]
    prompted = round(config.prompted_share * config.batch_size)
    sides: list[tuple[int, str, Callable[[str, random.Random], list[Part]]]] = [
        (prompted, PROMPT, with_prompt),
        (config.batch_size - prompted, "{text}", without_prompt),
    ]
    for step in range(config.steps):
        loss = torch.zeros(())
        for count, prompt, answers in sides:
            rows = rng.sample(texts, count)
            contexts = [context(tokenizer, tools, prompt.replace("{text}", text)) for text in rows]
            loss = loss + loss_of(model, tokenizer, contexts, [answers(text, rng) for text in rows])
        loss = loss / config.batch_size
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1.0, (step + 1) / config.warmup_steps) * (1 - step / config.steps)
        for optimizer, peak in zip(chosen, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad()
        if step % SHOWN_STEPS == 0:
            print(f"step {step}/{config.steps}: loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def right_share(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tools: list[dict[str, Any]], prompt: str
) -> float:
    """Share of held-out sums whose greedy answers, call and number, are right, with the calculator's between."""
    right = 0
    for text in sums()[:HELDOUT_ROWS]:
        ids = context(tokenizer, tools, prompt.replace("{text}", text))
        wanted = [*called(text, text, True), said(value(text)), said(TURN_END)]
        tokens, _ = encoded(tokenizer, wanted)
        learned = [part.learned[0] for part in wanted for _ in encoded(tokenizer, [part])[0]]
        logits_TV = model(input_ids=torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1]
        greedy = logits_TV.argmax(-1).tolist()
        right += all(a == b for a, b, keep in zip(greedy, tokens, learned, strict=True) if keep)
    return right / HELDOUT_ROWS


def create_base(out_dir: Path, config: TinyPairConfig, tools: list[dict[str, Any]]) -> None:
    """Train and write the base, unless it is there."""
    settings = {key: each for key, each in asdict(config).items() if key in (*SHAPE, *SCHEDULE)} | {"tools": tools}
    if has_pair(out_dir, settings, config.overwrite):
        print(f"{out_dir}: up to date")
        return
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    tokenizer = make_tokenizer(tools)
    model = train(config, tokenizer, tools)
    shares = {
        "with_prompt": right_share(model, tokenizer, tools, PROMPT),
        "without_prompt": right_share(model, tokenizer, tools, "{text}"),
    }
    record = {
        "settings": settings,
        "parameters": model.num_parameters(),
        "heldout_accuracy": shares,
        "seconds": round(time.monotonic() - started, 1),
    }
    save(out_dir, tokenizer, model, record)
    for name, share in shares.items():
        print(f"right calls and answers {name.replace('_', ' ')}: {share:.3f}")
    print(f"{out_dir}: {model.num_parameters():,} parameters, {record['seconds']} s")
