import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from recipe import create_data
from recipe.tiny_pair import TinyPairConfig, create
from verl_ext import data, tiny_pair

ROOT = Path(__file__).parent.parent.parent
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
def sample() -> list[data.Sentence]:
    return [s for s in data.file_sentences(ROOT / "data" / "sample.jsonl") if s.label]


@pytest.fixture(scope="module")
def tokenizer(sample):
    return tiny_pair.train_tokenizer([s.text for s in sample], data.LABELS, 512)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> TinyPairConfig:
    """A pair of a few steps, made by the verbs themselves from our sample."""
    where = tmp_path_factory.mktemp("pair")
    labelled = [line for line in (ROOT / "data" / "sample.jsonl").read_text().splitlines() if '"label"' in line]
    (where / "labelled.jsonl").write_text("\n".join(labelled) + "\n")
    create_data.create(
        create_data.CreateDataConfig(
            out_dir=str(where / "data"), source="file", sentences=str(where / "labelled.jsonl"), heldout_fraction=0.25
        )
    )
    config = TinyPairConfig(
        data_dir=str(where / "data"), out_dir=str(where / "base"), vocab_size=512, steps=3, batch_size=8, threads=1,
        **SMALL,
    )  # fmt: skip
    create(config)
    return config


@pytest.mark.parametrize("text", MULTILINGUAL)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("label", data.LABELS)
def test_labels_are_single_tokens_after_the_generation_prompt(tokenizer, label):
    opening = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    alone = tokenizer.encode(opening, add_special_tokens=False)
    answered = tokenizer.encode(opening + label + tiny_pair.TURN_END, add_special_tokens=False)
    assert answered == [*alone, tiny_pair.token_id(tokenizer, label), tokenizer.eos_token_id]


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
        tiny_pair.train_tokenizer(["a"], ["english"], 259)


def test_common_prefix():
    assert tiny_pair.common([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert tiny_pair.common([[1], [2]]) == 0


def test_crop_keeps_prompt_and_opening(tokenizer, sample):
    template = (create_data.PROMPTS / "short.txt").read_text().removesuffix("\n")
    chats = [data.row(s, template, "train", "t")["teacher_messages"] for s in sample]
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
    model = tiny_pair.build_model(tokenizer, {**SMALL, "initializer_range": 0.06})
    chats = [[{"role": "user", "content": "Language? " + s.text}] for s in sample[:4]]
    rows = tiny_pair.encode(tokenizer, chats, [s.label for s in sample[:4]])
    prompt = rows.contexts[0][: rows.head]
    logits_B2V = tiny_pair.answer_logits(model, prompt, rows)
    plain = [
        model(torch.tensor([[*c, label]])).logits[0, -2:] for c, label in zip(rows.contexts, rows.labels, strict=True)
    ]
    torch.testing.assert_close(logits_B2V, torch.stack(plain), atol=1e-4, rtol=1e-4)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(tiny_pair.loss_with_prompt(logits_B2V, rows.labels, 2), parameters)
    theirs = torch.autograd.grad(tiny_pair.loss_with_prompt(torch.stack(plain), rows.labels, 2), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_guess_loss_is_the_expected_loss_of_a_random_label():
    logits_B2V = torch.randn(1, 2, 4)
    guess_V = torch.tensor([0.0, 0.5, 0.25, 0.25])
    expected = sum(guess_V[v] * tiny_pair.loss_with_prompt(logits_B2V, [v], end=0) for v in range(4))
    torch.testing.assert_close(tiny_pair.loss_without_prompt(logits_B2V, guess_V, end=0), expected)


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
    create(pair)
    assert capsys.readouterr().out.strip().endswith("up to date")
    with pytest.raises(ValueError, match=r"other settings \(seed\).*overwrite=true"):
        create(TinyPairConfig(**{**vars(pair), "seed": 1}))


def test_a_folder_that_is_no_pair_is_never_replaced(pair, tmp_path):
    with pytest.raises(ValueError, match="no tiny pair"):
        create(TinyPairConfig(**{**vars(pair), "out_dir": str(tmp_path), "overwrite": True}))


@pytest.mark.parametrize(
    "setting", [{"prompted_share": 1.0}, {"window_min": 9, "window_max": 8}, {"steps": 0}, {"num_key_value_heads": 3}]
)
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match=r"expected|at least|must divide"):
        TinyPairConfig(**setting)


def test_rows_without_label_are_refused(tmp_path):
    create_data.create(
        create_data.CreateDataConfig(
            out_dir=str(tmp_path), source="file", sentences=str(create_data.PROMPTS / "short.txt"), heldout_fraction=0.5
        )
    )
    with pytest.raises(ValueError, match="row 0 has no label"):
        create(TinyPairConfig(data_dir=str(tmp_path), out_dir=str(tmp_path / "base")))
