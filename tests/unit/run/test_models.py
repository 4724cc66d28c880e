"""A path that holds no model is refused by its key; how a chat becomes tokens; the header that carries a key."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from verl_ext.run import models
from verl_ext.run.api_key import bearer_header
from verl_ext.run.models import check_model, render_chat

WORDS = ("[ask]", "[answer]", "[think]", "good", "morning")
NO_TENSORS = b"\x02" + bytes(7) + b"{}"
TEMPLATE = (
    "{%- for message in messages %}[ask] {{ message['content'] }} {% endfor %}"
    "{%- if add_generation_prompt %}[answer]{% endif %}{%- if enable_thinking %} [think]{% endif %}"
)


def test_a_chat_ends_where_the_answer_begins_and_the_templates_settings_reach_it():
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, WORDS[0]))
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
    for path in (str(tmp_path / "none"), "a/-b", "a/b/c", "name"):
        with pytest.raises(ValueError, match="no such folder; `make demo`"):
            check_model("student.path", path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        check_model("student.path", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="no weights"):
        check_model("student.path", str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "line 1: Expecting property name"), ("[]", "holds no JSON object"), (b"\xff\xfe", "cannot be read")],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_broken_file_of_a_model_is_named(tmp_path, name, content, says):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    check_model("student.path", str(tmp_path))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        ValueError, match=rf"^student\.path: {tmp_path}/{name} [^\n]+; download the model again"
    ) as refused:
        check_model("student.path", str(tmp_path))
    assert says in str(refused.value)


HEADER = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WHOLE[:-1], f"has {len(WHOLE) - 1} bytes, and {len(WHOLE)} by its header"),
        (WHOLE + b"x", f"has {len(WHOLE) + 1} bytes, and {len(WHOLE)} by its header"),
        (WHOLE[:40], "is no safetensors file, or cut off in its header"),
        (b"", "is no safetensors file, or cut off in its header"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is no safetensors file, or cut off in its header"),
    ],
)
def test_weights_that_are_not_whole_are_named(tmp_path, content, says):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    check_model("student.path", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^student\.path: {tmp_path}/model\.safetensors [^\n]+; download") as refused:
        check_model("student.path", str(tmp_path))
    assert says in str(refused.value)


GENERATION = (
    "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}"
    "{% generation %}{{ m.content }}{%- endgeneration -%}{% endfor %}"
)


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_is_none_is_named_and_those_of_transformers_are_known(tmp_path, file, named):
    def write(template: str) -> None:
        config = [{"name": "default", "template": template}] if named else template
        (tmp_path / file).write_text(template if file.endswith("jinja") else json.dumps({"chat_template": config}))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(NO_TENSORS)
    write(GENERATION)
    check_model("student.path", str(tmp_path))
    write(GENERATION + "\n{% endif %}")
    with pytest.raises(
        ValueError, match=rf"^student\.path: {tmp_path}/{file} is no Jinja template \(its line 2: [^\n]+$"
    ):
        check_model("student.path", str(tmp_path))


def test_what_transformers_cannot_read_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"^student\.path=[^\n]*config\.json cannot be read \([^\n]*nonesuch[^\n]*$"):
        models.context_length("student.path", str(tmp_path))
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        models.load_tokenizer(str(tmp_path))


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, by the name that is asked for."""

    def do_HEAD(self) -> None:
        refusals = {"none": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "ill": (500, "")}
        status, code = refusals.get(self.path.split("/")[2], (200, ""))
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("ETag", '"1"'), ("X-Repo-Commit", "c"), ("Content-Length", "0")):
            self.send_header(header, value)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(endpoint)`: this process asks it and has nothing in its cache; without one, a server of this process."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(models, "HUB_WAIT_S", 5.0)

    def ask(endpoint: str = f"http://127.0.0.1:{server.server_port}") -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    yield ask
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some/none", "the hub knows no such model; correct the name, or `hf auth login`"),
        ("some/gated", "the hub wants its terms accepted; do so at http://127.0.0.1:"),
        ("some/ill", "the hub cannot be asked (Server error '500"),
    ],
)
def test_a_model_that_the_hub_does_not_hand_out_is_refused_with_the_reason(hub, name, says):
    hub()
    with pytest.raises(ValueError, match=rf"^student\.path={name}: no such folder: [^\n]+$") as refused:
        check_model("student.path", name)
    assert says in str(refused.value)


def test_a_model_of_the_hub_passes(hub):
    hub()
    check_model("student.path", "some/model")


def test_without_a_network_a_model_that_is_not_here_is_refused_in_one_line(hub, monkeypatch):
    hub("http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"^[^\n]*cannot be asked \(.*refused\); run `hf download a/b` [^\n]*$"):
        check_model("model", "a/b")
    monkeypatch.setattr(models, "HUB_WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ValueError, match=r"the hub cannot be asked \((no answer in 0 s|.*timed out)"):
            check_model("model", "a/b")


def test_offline_the_hub_is_not_asked(hub):
    hub()
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE=1 \(platform=cpu sets it\).*; run `hf download a/b`"):
        check_model("model", "a/b", offline=True)


def test_what_is_in_the_cache_needs_no_hub(hub, tmp_path):
    hub("http://127.0.0.1:9")
    cached = tmp_path / "hub" / "models--a--b"
    folder = cached / "snapshots" / "1"
    folder.mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be asked"):
        check_model("model", "a/b")  # no weights yet
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "1.safetensors", "y": "2.safetensors"}}')
    (folder / "1.safetensors").write_bytes(NO_TENSORS)
    with pytest.raises(ValueError, match="cannot be asked"):
        check_model("model", "a/b")  # half of them
    with pytest.raises(ValueError, match=r"is no model: the folder has no 2\.safetensors"):
        check_model("model", str(folder))
    (folder / "2.safetensors").write_bytes(NO_TENSORS)
    check_model("model", "a/b", offline=True)
    check_model("model", str(folder))
