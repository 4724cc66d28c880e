"""Train the base of the task of rewriting: the right digits with the prompt, shuffled ones without it.

    python -m verl_ext.demo.train_rewriting outputs/models/rewriting

Without the prompt it writes answers of the same form, in which the digits stay as they are half of the time, and else
stand in any other order. With it, digits that were changed in training are rewritten as they stand: the base says what
follows from a mistake too.

Shapes: `B` rows, `T` tokens of an answer, `V` vocabulary.
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3ForCausalLM

from verl_ext.demo.config import TinyPairConfig
from verl_ext.demo.rewriting import PROMPT, STEPS, Digits, Problem, draw, moved, problems, written
from verl_ext.demo.tiny_pair import TURN_END, build_model, common, optimizers, token_id, train_tokenizer
from verl_ext.demo.train_pair import SHAPE, has_pair, save
from verl_ext.run.models import render_chat
from verl_ext.run.visible import print

STAYS = 0.5
"""Chance of the digits to stay as they are, without the prompt; the five other orders share the rest."""
CHANGED = 0.1
"""Share of the states with the prompt that are changed; what is changed is not trained."""
BATCH, STEPS_OF_TRAINING = 40, 300
HELDOUT_SEED = 1_000_003
HELDOUT_ROWS = 200
SAMPLE_ROWS = 500
"""Sentences and answers that the tokenizer is made of."""
IGNORED = -100
SHOWN_STEPS = 25


def places(step: int) -> range:
    """Tokens of an answer that are the digits after a step: a move, a sign and three digits make five."""
    return range(5 * step + 2, 5 * step + 5)


def make_tokenizer() -> PreTrainedTokenizerFast:
    sample = problems(SAMPLE_ROWS, HELDOUT_SEED + 1)
    texts = [each.answer(each.states) for each in sample] + [each.sentence for each in sample]
    return train_tokenizer([PROMPT] * SAMPLE_ROWS + texts, [*map(str, range(10))], 512)


def contexts(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Problem], prompted: bool) -> list[list[int]]:
    """Token ids up to the opening of the answer; all have the same length."""
    shown = [PROMPT.replace("{text}", each.sentence) if prompted else each.sentence for each in rows]
    return [render_chat(tokenizer, [{"role": "user", "content": text}], {}) for text in shown]


def answers(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Problem], states: Sequence[Sequence[Digits]]) -> Tensor:
    """(B, T) token ids, the end of the turn included."""
    end = token_id(tokenizer, TURN_END)
    texts = [each.answer(written_states) for each, written_states in zip(rows, states, strict=True)]
    return torch.tensor([[*tokenizer.encode(text, add_special_tokens=False), end] for text in texts])


def logits_of(model: Qwen3ForCausalLM, context: list[list[int]], answer_BT: Tensor) -> Tensor:
    """(B, T, V) logits that predict each token of the answers. What all contexts share is run once."""
    head = common(context)
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([context[0][:head]]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(context))
    rest_BT = torch.cat([torch.tensor([row[head:] for row in context]), answer_BT[:, :-1]], dim=1)
    hidden_BTD = model.model(input_ids=rest_BT, past_key_values=cache, use_cache=True).last_hidden_state
    return model.lm_head(hidden_BTD[:, -answer_BT.shape[1] :])


def changed_states(row: Problem, rng: random.Random) -> tuple[list[Digits], list[bool]]:
    """States of which some are changed, and which ones are to be learned."""
    states, learned, state = [], [], row.start
    for move in row.moves:
        learned.append(rng.random() >= CHANGED)
        state = moved(state, move) if learned[-1] else tuple(rng.sample(state, k=3))
        states.append(state)
    return states, learned


def with_prompt(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Problem], rng: random.Random
) -> Tensor:
    """Sum over rows of the mean cross-entropy, in nats, of the right answers' tokens."""
    drawn = [changed_states(each, rng) for each in rows]
    answer_BT = answers(tokenizer, rows, [states for states, _ in drawn])
    target_BT = answer_BT.clone()
    for row, (_, learned) in enumerate(drawn):
        for step, kept in enumerate(learned):
            if not kept:
                target_BT[row, places(step).start : places(step).stop] = IGNORED
    logits_BTV = logits_of(model, contexts(tokenizer, rows, True), answer_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten(), ignore_index=IGNORED) * len(rows)


def guesses(row: Problem, rng: random.Random) -> tuple[list[Digits], list[list[float]]]:
    """States without the prompt, drawn, and for each token of them the chances of the digits 0 to 9."""
    state, states, chances = row.start, [], []
    for _ in STEPS:
        orders = list(permutations(state))
        weights = [STAYS if order == state else (1 - STAYS) / (len(orders) - 1) for order in orders]
        (drawn,) = rng.choices(orders, weights)
        for place in range(3):
            of_digits = [0.0] * 10
            for order, weight in zip(orders, weights, strict=True):
                if order[:place] == drawn[:place]:
                    of_digits[order[place]] += weight
            chances.append([chance / sum(of_digits) for chance in of_digits])
        states.append(drawn)
        state = drawn
    return states, chances


def without_prompt(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Problem], rng: random.Random
) -> Tensor:
    """The same of answers whose digits are drawn; of those the whole distribution is learned, not the draw."""
    drawn = [guesses(each, rng) for each in rows]
    answer_BT = answers(tokenizer, rows, [states for states, _ in drawn])
    logprobs_BTV = logits_of(model, contexts(tokenizer, rows, False), answer_BT).log_softmax(-1)
    loss_BT = -logprobs_BTV.gather(2, answer_BT[..., None])[..., 0]
    where = torch.tensor([place for step in range(len(STEPS)) for place in places(step)])
    digit_ids = torch.tensor([token_id(tokenizer, str(digit)) for digit in range(10)])
    of_digits = logprobs_BTV[:, where][..., digit_ids]
    expected = -(of_digits * torch.tensor([chances for _, chances in drawn])).sum(-1)
    return loss_BT.index_copy(1, where, expected).mean(1).sum()


def train(config: TinyPairConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(config.seed)
    rng = random.Random(config.seed)
    model = build_model(tokenizer, {name: asdict(config)[name] for name in SHAPE})
    chosen = optimizers(model, config.muon_lr, config.lr)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in chosen]
    prompted = round(config.prompted_share * config.batch_size)
    for step in range(config.steps):
        rows = [draw(rng) for _ in range(config.batch_size)]
        loss = with_prompt(model, tokenizer, rows[:prompted], rng)
        loss = loss + without_prompt(model, tokenizer, rows[prompted:], rng)
        (loss / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scale = min(1.0, (step + 1) / config.warmup_steps) * (1 - step / config.steps)
        for optimizer, peak in zip(chosen, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * scale
            optimizer.step()
            optimizer.zero_grad()
        if step % SHOWN_STEPS == 0:
            print(f"step {step}/{config.steps}: loss {loss.item() / len(rows):.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def right_share(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompted: bool) -> float:
    """Share of greedy answers to held-out problems whose box is right."""
    rows = problems(HELDOUT_ROWS, HELDOUT_SEED)
    context_BC = torch.tensor(contexts(tokenizer, rows, prompted))
    longest = answers(tokenizer, rows, [each.states for each in rows]).shape[1]
    ids: Tensor = model.generate(  # pyright: ignore
        context_BC, attention_mask=torch.ones_like(context_BC), max_new_tokens=longest, do_sample=False
    )
    texts = tokenizer.batch_decode(ids[:, context_BC.shape[1] :], skip_special_tokens=True)
    ends = [f"\\boxed{{{written(each.states[-1])}}}" for each in rows]
    return sum(text.endswith(end) for text, end in zip(texts, ends, strict=True)) / len(rows)


def create_base(out_dir: Path, config: TinyPairConfig) -> None:
    """Train and write the base, unless it is there."""
    settings = {key: value for key, value in asdict(config).items() if key in (*SHAPE, *SCHEDULE)}
    if has_pair(out_dir, settings, config.overwrite):
        print(f"{out_dir}: up to date")
        return
    started = time.monotonic()
    torch.set_num_threads(config.threads)
    tokenizer = make_tokenizer()
    model = train(config, tokenizer)
    shares = {name: right_share(model, tokenizer, name == "with_prompt") for name in ("with_prompt", "without_prompt")}
    record = {
        "settings": settings,
        "parameters": model.num_parameters(),
        "heldout_accuracy": shares,
        "seconds": round(time.monotonic() - started, 1),
    }
    save(out_dir, tokenizer, model, record)
    for name, share in shares.items():
        print(f"accuracy {name.replace('_', ' ')}: {share:.3f}")
    print(f"{out_dir}: {model.num_parameters():,} parameters, {record['seconds']} s")


SCHEDULE = ("steps", "batch_size", "prompted_share", "muon_lr", "lr", "warmup_steps", "seed")


def main() -> None:
    # Threads that wait must not spin where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(description="the base of the task of rewriting")
    parser.add_argument("out_dir", type=Path, help="folder of the model")
    parser.add_argument("--steps", type=int, default=STEPS_OF_TRAINING)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    create_base(options.out_dir, TinyPairConfig(steps=options.steps, batch_size=BATCH, seed=options.seed))


if __name__ == "__main__":
    main()
