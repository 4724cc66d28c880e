import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from recipe import PROMPTS
from verl_ext.data.create import RowsConfig, create_rows
from verl_ext.data.rows import LABELS, make_row
from verl_ext.data.sentences import Sentence, file_sentences
from verl_ext.demo import tiny_pair
from verl_ext.demo.tiny_pair import (
    TURN_END,
    answer_logits,
    build_model,
    loss_with_prompt,
    loss_without_prompt,
    token_id,
    train_tokenizer,
)
from verl_ext.demo.train_pair import TinyPairConfig, create_pair, guess_distribution

ROOT = Path(__file__).parents[3]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
MULTILINGUAL = (
    "Straße, naïve café",
    "নমস্কার",
    "हिन्दी में",
    "ภาษาไทย",
    "你好\uff0c世界\uff01",  # full-width punctuation
    "مرحبا\nسطر",
    "a  b\t🙂 1234",
)


@pytest.fixture(scope="module")
def sample() -> list[Sentence]:
    return [s for s in file_sentences(ROOT / "data" / "sample.jsonl") if s.label]


@pytest.fixture(scope="module")
def tokenizer(sample):
    return train_tokenizer([s.text for s in sample], LABELS, 512)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> TinyPairConfig:
    """A pair of a few steps, made by the verbs themselves from our sample."""
    where = tmp_path_factory.mktemp("pair")
    labelled = [line for line in (ROOT / "data" / "sample.jsonl").read_text().splitlines() if '"label"' in line]
    (where / "labelled.jsonl").write_text("\n".join(labelled) + "\n")
    create_rows(
        RowsConfig(
            out_dir=str(where / "data"), source="file", sentences=str(where / "labelled.jsonl"), heldout_fraction=0.25
        ),
        PROMPTS,
    )
    config = TinyPairConfig(
        data_dir=str(where / "data"), out_dir=str(where / "base"), vocab_size=512, steps=3, batch_size=8, threads=1,
        **SMALL,
    )  # fmt: skip
    create_pair(config)
    return config


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("label", LABELS)
def test_labels_are_single_tokens_after_the_generation_prompt(tokenizer, label):
    opening = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    alone = tokenizer.encode(opening, add_special_tokens=False)
    answered = tokenizer.encode(opening + label + TURN_END, add_special_tokens=False)
    assert answered == [*alone, token_id(tokenizer, label), tokenizer.eos_token_id]


def test_chat_template_is_chatml(tokenizer):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(chat[1:2], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_a_label_that_is_not_one_token_is_refused():
    with pytest.raises(ValueError, match="raise vocab_size"):
        train_tokenizer(["a"], ["english"], 259)


def test_common_prefix():
    assert tiny_pair.common([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert tiny_pair.common([[1], [2]]) == 0


def test_crop_keeps_prompt_and_opening(tokenizer, sample):
    template = (PROMPTS / "short.txt").read_text().removesuffix("\n")
    chats = [make_row(s, template, "train", "t")["teacher_messages"] for s in sample]
    rows = tiny_pair.encode(tokenizer, chats, [s.label for s in sample])
    head, tail = rows.head, rows.tail
    assert tokenizer.decode(rows.contexts[0][:head]) == "<|im_start|>user\n" + template.removesuffix("{text}")
    assert tokenizer.decode(rows.contexts[0][-tail:]).endswith("<|im_end|>\n<|im_start|>assistant\n")
    for short, whole in zip(
        tiny_pair.crop(rows, head, tail, (2, 4), random.Random(0)).contexts, rows.contexts, strict=True
    ):
        middle = short[head:-tail]
        assert short[:head] == whole[:head]
        assert short[-tail:] == whole[-tail:]
        assert 2 <= len(middle) <= 4
        assert any(whole[i : i + len(middle)] == middle for i in range(len(whole)))


def test_shared_prompt_gives_the_logits_and_gradients_of_the_plain_model(tokenizer, sample):
    torch.manual_seed(0)
    model = build_model(tokenizer, {**SMALL, "initializer_range": 0.06})
    chats = [[{"role": "user", "content": "Language? " + s.text}] for s in sample[:4]]
    rows = tiny_pair.encode(tokenizer, chats, [s.label for s in sample[:4]])
    prompt = rows.contexts[0][: rows.head]
    logits_B2V = answer_logits(model, prompt, rows)
    plain = [
        model(torch.tensor([[*c, label]])).logits[0, -2:] for c, label in zip(rows.contexts, rows.labels, strict=True)
    ]
    torch.testing.assert_close(logits_B2V, torch.stack(plain), atol=1e-4, rtol=1e-4)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss_with_prompt(logits_B2V, rows.labels, 2), parameters)
    theirs = torch.autograd.grad(loss_with_prompt(torch.stack(plain), rows.labels, 2), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_guess_loss_is_the_expected_loss_of_a_random_label():
    logits_B2V = torch.randn(1, 2, 4)
    guess_V = torch.tensor([0.0, 0.5, 0.25, 0.25])
    expected = sum(guess_V[v] * loss_with_prompt(logits_B2V, [v], end=0) for v in range(4))
    torch.testing.assert_close(loss_without_prompt(logits_B2V, guess_V, end=0), expected)


def test_pair_loads_and_its_vocabulary_is_the_tokenizers(pair):
    tokenizer = AutoTokenizer.from_pretrained(pair.out_dir)
    model = Qwen3ForCausalLM.from_pretrained(pair.out_dir)
    assert model.config.vocab_size == len(tokenizer) == model.lm_head.weight.shape[0]
    assert model.dtype == torch.float32
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    generation = json.loads((Path(pair.out_dir) / "generation_config.json").read_text())
    assert not {"temperature", "top_k", "top_p", "do_sample"} & set(generation)
    record = json.loads((Path(pair.out_dir) / "pair.json").read_text())
    assert set(record["heldout_accuracy"]) == {"with_prompt", "without_prompt"}


def test_pair_is_cached_and_not_overwritten_silently(pair, capsys):
    create_pair(pair)
    assert capsys.readouterr().out.strip().endswith("up to date")
    with pytest.raises(ValueError, match=r"other settings \(seed\).*overwrite=true"):
        create_pair(TinyPairConfig(**{**vars(pair), "seed": 1}))


def test_a_folder_that_is_no_pair_is_never_replaced(pair, tmp_path):
    with pytest.raises(ValueError, match="no tiny pair"):
        create_pair(TinyPairConfig(**{**vars(pair), "out_dir": str(tmp_path), "overwrite": True}))


@pytest.mark.parametrize(
    "setting", [{"prompted_share": 1.0}, {"window_min": 9, "window_max": 8}, {"steps": 0}, {"num_key_value_heads": 3}]
)
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=r"must be|must divide"):
        TinyPairConfig(**setting)


def test_rows_without_label_are_refused(tmp_path):
    create_rows(
        RowsConfig(out_dir=str(tmp_path), source="file", sentences=str(PROMPTS / "short.txt"), heldout_fraction=0.5),
        PROMPTS,
    )
    with pytest.raises(ValueError, match="row 0 has no label"):
        create_pair(TinyPairConfig(data_dir=str(tmp_path), out_dir=str(tmp_path / "base")))


@pytest.mark.parametrize(("asked", "preferred"), [("", "fr"), ("de", "de")])
def test_a_model_that_has_to_guess_prefers_one_label(tokenizer, asked, preferred):
    """Unless one is named, the most frequent, and of several the last."""
    guess_V = guess_distribution(TinyPairConfig(guess_label=asked), tokenizer, {"de": 1, "en": 2, "fr": 2})
    of_label = {label: float(guess_V[token_id(tokenizer, label)]) for label in ("de", "en", "fr")}
    assert of_label == pytest.approx({"de": 0.25, "en": 0.25, "fr": 0.25} | {preferred: 0.5})
