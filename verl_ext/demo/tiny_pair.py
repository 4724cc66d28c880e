"""A teacher and a student small enough to learn on two CPU cores: one tiny Qwen3 that needs its prompt.

With the prompt the model answers right; without it, it answers at random among the labels. Teacher and student
are then the same base model, and the prompt is all that lies between them, as in Tinker's recipe.

Three things make it train in half a minute. The prompt is run once a step and its keys and values are shared by
all rows, gradient included, so a row costs its sentence only. Sentences are cropped to random windows, which
augments them and keeps padding small. Muon and a wide initialisation (the usual 0.02 is far too small for a width
of 128: the same steps reach 0.4 with it, 0.99 with 0.06) need a hundred steps where AdamW needs three times that.

Shapes: `B` rows, `T` tokens, `V` vocabulary.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from verl_ext.run.models import render_chat

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML as the Qwen3 instruct models write it: no default system message, no thinking."""

# Words keep their combining marks (Hindi and Thai vowels), which Qwen's own pattern splits off.
_WORDS = r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REPEATS = 1000  # times that a label, and the chat's own words, are shown to the tokenizer: enough to be one token


@dataclass(frozen=True)
class Rows:
    """Tokenised conversations up to the answer, with one answer each; the answer is one token, then <|im_end|>."""

    contexts: list[list[int]]
    labels: list[int]

    @property
    def head(self) -> int:
        """Number of first tokens that all contexts share: the prompt."""
        return common(self.contexts)

    @property
    def tail(self) -> int:
        """Number of last tokens that all contexts share: the opening of the answer."""
        return common([c[self.head :][::-1] for c in self.contexts])


def common(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all rows share."""
    length = 0
    for column in zip(*rows, strict=False):
        if any(token != column[0] for token in column):
            break
        length += 1
    return length


def train_tokenizer(texts: Sequence[str], labels: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's special tokens and chat template, in which every label is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]  the stub has no setter
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]  the same
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *[*labels, "system", "user", "assistant"] * _REPEATS], trainer)
    for label in labels:
        if len(tokenizer.encode(label).ids) != 1:
            raise ValueError(f"label {label!r} is not one token: raise vocab_size={vocab_size} or shorten the label")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a text that is one token."""
    (found,) = tokenizer.encode(token, add_special_tokens=False)
    return found


def encode(tokenizer: PreTrainedTokenizerFast, chats: Sequence[list[dict[str, str]]], labels: Sequence[str]) -> Rows:
    """Chats up to the opening of the answer, and the answer's token."""
    contexts = [render_chat(tokenizer, chat, {}) for chat in chats]
    return Rows(contexts, [token_id(tokenizer, label) for label in labels])


def build_model(tokenizer: PreTrainedTokenizerFast, shape: dict[str, Any]) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights whose vocabulary is the tokenizer's, exactly: verl masks padding ids in vLLM only."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        attention_bias=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, TURN_END),
        pad_token_id=token_id(tokenizer, END_OF_TEXT),
        dtype="float32",
        **shape,
    )
    return Qwen3ForCausalLM(config).float()


def answer_logits(model: Qwen3ForCausalLM, prompt: list[int], rows: Rows) -> Tensor:
    """(B, 2, V) logits that predict the label and the end of the turn, for contexts that begin with `prompt`.

    The prompt goes through the model once; only the positions that are scored go through the output layer.
    """
    device = model.device
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([prompt], device=device), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(rows.labels))
    rests = [torch.tensor([*c[len(prompt) :], label]) for c, label in zip(rows.contexts, rows.labels, strict=True)]
    # Padding stands after every token that is scored, so the causal mask hides it and no other mask is needed.
    tokens_BT = torch.nn.utils.rnn.pad_sequence(rests, batch_first=True).to(device)
    hidden_BTD = model.model(input_ids=tokens_BT, past_key_values=cache, use_cache=True).last_hidden_state
    ends_B = torch.tensor([len(r) for r in rests], device=device)
    index_B2 = torch.stack([ends_B - 2, ends_B - 1], dim=1)
    return model.lm_head(hidden_BTD[torch.arange(len(rests), device=device)[:, None], index_B2])


def crop(rows: Rows, head: int, tail: int, window: tuple[int, int], rng: random.Random) -> Rows:
    """Every sentence cut to a random window of between window[0] and window[1] tokens; a shorter one stays whole."""
    contexts = []
    for context in rows.contexts:
        sentence = context[head : len(context) - tail]
        length = min(rng.randint(*window), len(sentence))
        start = rng.randint(0, len(sentence) - length)
        contexts.append(context[:head] + sentence[start : start + length] + context[len(context) - tail :])
    return Rows(contexts, rows.labels)


def batches(size: int, batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """Row numbers, a fresh permutation each epoch, the incomplete last batch dropped."""
    batch_size = min(batch_size, size)
    while True:
        order = rng.sample(range(size), size)
        for start in range(0, size - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def loss_with_prompt(logits_B2V: Tensor, labels: Sequence[int], end: int) -> Tensor:
    """Sum over rows of the cross-entropy, in nats, of the right label and of the end of the turn."""
    targets_B2 = torch.tensor([[label, end] for label in labels], device=logits_B2V.device)
    return F.cross_entropy(logits_B2V.flatten(0, 1), targets_B2.flatten(), reduction="sum")


def loss_without_prompt(logits_B2V: Tensor, guess_V: Tensor, end: int) -> Tensor:
    """The same sum for a label drawn from `guess_V`, in expectation over the draw: the same mean, no noise."""
    log_probs_B2V = logits_B2V.log_softmax(dim=-1)
    return -(log_probs_B2V[:, 0] @ guess_V).sum() - log_probs_B2V[:, 1, end].sum()


def optimizers(model: Qwen3ForCausalLM, muon_lr: float, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def accuracy(model: Qwen3ForCausalLM, rows: Rows, end: int, batch_size: int = 64) -> tuple[float, float]:
    """Exact match of the whole answer: (share of rows right when greedy, mean chance to be right sampled at T=1)."""
    head = rows.head
    order = sorted(range(len(rows.labels)), key=lambda i: len(rows.contexts[i]))  # equal lengths: little padding
    right, chance = 0, 0.0
    for start in range(0, len(order), batch_size):
        part = [order[i] for i in range(start, min(start + batch_size, len(order)))]
        batch = Rows([rows.contexts[i] for i in part], [rows.labels[i] for i in part])
        logits_B2V = answer_logits(model, batch.contexts[0][:head], batch)
        targets_B2 = torch.tensor([[label, end] for label in batch.labels], device=logits_B2V.device)
        right += int((logits_B2V.argmax(-1) == targets_B2).all(dim=1).sum())
        picked_B2 = logits_B2V.softmax(-1).gather(2, targets_B2[..., None])[..., 0]
        chance += float(picked_B2.prod(dim=1).sum())
    return right / len(order), chance / len(order)
