import torch
from transformers import Qwen3Config

from verl_ext.data.rows import LABELS
from verl_ext.demo.tiny_pair import build_model, train_tokenizer
from verl_ext.student.export import TARGET_MODULES, count_parameters, untie_head

# Qwen/Qwen3-4B-Instruct-2507's config.json, as far as it decides shapes.
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def test_the_adapters_of_qwen3_4b_are_as_many_as_tinkers():
    config = Qwen3Config(**QWEN3_4B)
    assert count_parameters(config, rank=32) == 71_004_160
    assert count_parameters(config, 32, TARGET_MODULES[:-1]) == 66_060_288  # what all-linear leaves: no output head


def test_an_untied_head_changes_alone():
    tokenizer = train_tokenizer(["x"], LABELS, 300)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_model(tokenizer, shape | {"num_key_value_heads": 1, "head_dim": 16})
    before = model.model.embed_tokens.weight.detach().clone()
    untie_head(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not model.config.tie_word_embeddings
