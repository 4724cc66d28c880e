"""A path that holds no model is refused by its key; how a chat becomes tokens; the header that carries a key."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_ext.run.api_key import bearer_header
from verl_ext.run.models import check_model, render_chat

WORDS = ("[ask]", "[answer]", "[think]", "good", "morning")
TEMPLATE = (
    "{%- for message in messages %}[ask] {{ message['content'] }} {% endfor %}"
    "{%- if add_generation_prompt %}[answer]{% endif %}{%- if enable_thinking %} [think]{% endif %}"
)


def test_a_chat_ends_where_the_answer_begins_and_the_templates_settings_reach_it():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE)
    chat = ({"role": "user", "content": "good morning"},)
    assert render_chat(tokenizer, chat, {}) == [0, 3, 4, 1]
    assert render_chat(tokenizer, chat, {"enable_thinking": True}) == [0, 3, 4, 1, 2]


def test_a_key_goes_into_one_header_and_none_where_there_is_no_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-123")
    assert bearer_header("MY_KEY") == {"Authorization": "Bearer secret-123"}
    monkeypatch.setenv("MY_KEY", "")
    assert bearer_header("MY_KEY") == {}
    monkeypatch.delenv("MY_KEY")
    assert bearer_header("MY_KEY") == {}


def test_model_paths(tmp_path):
    check_model("student.path", "Qwen/Qwen3-4B-Instruct-2507")
    for path, message in ((str(tmp_path / "none"), "no such folder"), (str(tmp_path), r"no config\.json")):
        with pytest.raises(ValueError, match=message):
            check_model("student.path", path)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no weights"):
        check_model("student.path", str(tmp_path))
