"""Fingerprints: what must change one, what must not, and how a server without files is recognised."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web
from transformers import Qwen3Config, Qwen3ForCausalLM

from verl_ext.teacher import file_hashes
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.file_hashes import hash_files
from verl_ext.teacher.fingerprint import TeacherFingerprint, fingerprint_of_files, hash_of_model, sglang_version_of
from verl_ext.teacher.probe import ProbeRecord, probe_sequences, take_probe
from verl_ext.teacher.scorer import (
    Score,
    ScoreRequest,
    TeacherError,
    TeacherResponseError,
    TeacherUnavailableError,
)
from verl_ext.teacher.store import ScoreStore
from verl_ext.teacher.stored_teachers import fingerprint_for_store, model_folder, recognise, served_fingerprint

GIB = 1 << 30
VOCAB = 64
FINGERPRINT = TeacherFingerprint("m", None, "float32", "auto", "0.5.21")


class TransformersScorer:
    """Scores with a transformers model in this process."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.model = model

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        scores: list[Score | TeacherError] = []
        for request in requests:
            ids = torch.tensor([[*request.prompt_ids, *request.response_ids]])
            with torch.no_grad():
                logprobs_TV = self.model(ids).logits[0].log_softmax(-1)
            first = len(request.prompt_ids) - 1
            picked_R = logprobs_TV[first:-1].gather(1, ids[0, first + 1 :, None])[:, 0]
            scores.append(Score(picked_R.numpy()))
        return scores

    async def prime(self, request: ScoreRequest) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None: ...


class BrokenScorer(TransformersScorer):
    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        return [TeacherUnavailableError("gone") for _ in requests]


def with_noise(model: Qwen3ForCausalLM, share: float) -> Qwen3ForCausalLM:
    """A copy with relative noise in one norm's weights."""
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    weight = copy.get_parameter("model.layers.0.input_layernorm.weight")
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    weight.data *= 1 + share * noise
    return copy.eval()


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCAB, tie_word_embeddings=True, **shape, **heads)).eval()  # pyright: ignore[reportArgumentType]  typed field by field


@pytest.fixture
def folder(tmp_path: Path, model: Qwen3ForCausalLM) -> Path:
    target = tmp_path / "model"
    model.save_pretrained(target)
    (target / "tokenizer.json").write_text("{}")
    return target


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "hashes.json"


@pytest.fixture
def store(tmp_path: Path):
    opened = ScoreStore(tmp_path / "store", GIB)
    yield opened
    opened.close()


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter for which SGLang 9.9.9 is installed."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 9.9.9\n")
    script.chmod(0o755)
    return str(script)


# ---- files


def edit_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "one bit of the weights": lambda folder: edit_byte(folder / "model.safetensors"),
    "config": lambda folder: (folder / "config.json").write_text("{}"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{ }"),
    "code": lambda folder: (folder / "modeling.py").write_text(""),
    "a file's name": lambda folder: (folder / "model.safetensors").rename(folder / "a.safetensors"),
    "one more shard": lambda folder: (folder / "x.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_makes_another_model(folder: Path, cache: Path, change: Callable[[Path], Any]) -> None:
    before = hash_of_model(folder, cache)
    assert hash_of_model(folder, cache) == before
    change(folder)
    assert hash_of_model(folder, cache) != before


def test_what_leaves_the_model_the_same(folder: Path, cache: Path, tmp_path: Path) -> None:
    before = hash_of_model(folder, cache)
    (folder / "README.md").write_text("words")
    (folder / "chat_template.jinja").write_text("{{ messages }}")  # ids are scored, not chats
    os.utime(folder / "model.safetensors")
    assert hash_of_model(folder, cache) == before
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert hash_of_model(tmp_path / "elsewhere", cache) == before


def test_noise_of_a_thousandth_is_another_file(
    folder: Path, cache: Path, tmp_path: Path, model: Qwen3ForCausalLM
) -> None:
    with_noise(model, 1e-3).save_pretrained(tmp_path / "noisy")
    shutil.copy(folder / "tokenizer.json", tmp_path / "noisy")
    assert hash_of_model(tmp_path / "noisy", cache) != hash_of_model(folder, cache)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model(folder: Path, cache: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=r"teacher\.model_path: .* give the folder of a whole model"):
        hash_of_model(folder, cache)


def test_a_file_is_read_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = file_hashes._hash
    monkeypatch.setattr(file_hashes, "_hash", lambda path, advance: read.append(path.name) or real(path, advance))
    paths = [folder / "config.json", folder / "model.safetensors"]
    first = hash_files(paths, cache)
    assert hash_files(paths, cache) == first
    assert sorted(read) == ["config.json", "model.safetensors"]
    # Same size, and the old mtime put back, as `cp -p` and rsync do: still read again.
    stat = paths[1].stat()
    edit_byte(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hash_files(paths, cache)[1] != first[1]
    assert read[2:] == ["model.safetensors"]
    for damage in ("{", "[]"):
        cache.write_text(damage)
        assert hash_files(paths, cache)[0] == first[0]


def test_a_file_that_changes_while_it_is_read(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a download is still running."""
    real = file_hashes._hash

    def read_and_change(path: Path, advance: Callable[[int], None]) -> str:
        digest = real(path, advance)
        path.write_bytes(path.read_bytes() + b"\n")
        return digest

    monkeypatch.setattr(file_hashes, "_hash", read_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        hash_files([folder / "config.json"], cache)
    assert not cache.exists()


def test_the_id_changes_with_every_field() -> None:
    changes = {
        "model": "n",
        "quantization": "fp8",
        "dtype": "bfloat16",
        "kv_cache_dtype": "fp8_e5m2",
        "sglang_version": "0.5.22",
        "served_as": "path default",
        "extra_args": ("--x",),
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(TeacherFingerprint)}
    ids = {dataclasses.replace(FINGERPRINT, **{name: value}).id for name, value in changes.items()}
    assert len(ids | {FINGERPRINT.id}) == len(changes) + 1
    assert {len(found) for found in ids} == {16}
    assert TeacherFingerprint.from_dict(json.loads(json.dumps(FINGERPRINT.to_dict()))).id == FINGERPRINT.id


def test_the_fingerprint_of_a_managed_teacher(folder: Path, cache: Path, python: str) -> None:
    config = TeacherConfig(model_path=str(folder), python=python, dtype="bfloat16", extra_args=["--a", "1"])
    assert fingerprint_of_files(config, folder, cache) == TeacherFingerprint(
        hash_of_model(folder, cache), None, "bfloat16", "auto", "9.9.9", extra_args=("--a", "1")
    )


@pytest.mark.parametrize("python", ["/no/such/python", sys.executable])
def test_an_interpreter_without_sglang(python: str) -> None:
    with pytest.raises(ValueError, match=r"teacher\.python: .* cannot tell its SGLang's version"):
        sglang_version_of(python)


def test_a_model_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teacher\.model_path: nobody/nothing is neither a folder nor"):
        model_folder(TeacherConfig(model_path="nobody/nothing"))
    with pytest.raises(ValueError, match=r"teacher\.model_path"):
        model_folder(TeacherConfig(model_path=str(tmp_path / "missing")))


# ---- the probe


def test_the_probe_is_the_same_everywhere() -> None:
    sequences = probe_sequences(151_936)
    assert (len(sequences), {len(row) for row in sequences}) == (8, {64})
    assert sequences[0][:4] == (104582, 114926, 131182, 49164)
    assert {token for row in probe_sequences(7) for token in row} == set(range(7))


async def test_a_record_comes_back_to_the_bit(tmp_path: Path, model: Qwen3ForCausalLM) -> None:
    record = await take_probe(TransformersScorer(model), FINGERPRINT, probe_sequences(VOCAB))
    record.save(tmp_path / "new" / "teacher.json")
    loaded = ProbeRecord.load(tmp_path / "new" / "teacher.json")
    assert loaded == record
    assert len(loaded.logprobs) == 8
    assert {len(row) for row in loaded.logprobs} == {63}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["teacher.json"]


async def test_noise_of_a_thousandth_shows_in_the_probe(model: Qwen3ForCausalLM) -> None:
    sequences = probe_sequences(VOCAB)
    record = await take_probe(TransformersScorer(model), FINGERPRINT, sequences)
    same = await take_probe(TransformersScorer(with_noise(model, 0.0)), FINGERPRINT, sequences)
    noisy = await take_probe(
        TransformersScorer(with_noise(model, 1e-3)), dataclasses.replace(FINGERPRINT, model="n"), sequences
    )
    assert record.complaint(same) is None
    assert (
        dataclasses.replace(record, fingerprint=dataclasses.replace(FINGERPRINT, dtype="bfloat16")).complaint(noisy)
        is None
    )
    complaint = record.complaint(noisy)
    assert complaint is not None
    assert "not the teacher that was recorded" in complaint
    assert "model 'm' is now 'n'" in complaint


def test_the_difference_worked_out_by_hand() -> None:
    one = ProbeRecord(FINGERPRINT, ((1, 2, 3), (4, 5, 6)), ((-1.0, -2.0), (-3.0, -4.0)))
    two = dataclasses.replace(one, logprobs=((-1.0, -2.25), (-3.5, -4.0)))
    assert one.greatest_difference(two) == 0.5
    assert one.complaint(two, 0.5) is None
    assert "off by up to 0.5 nats" in (one.complaint(two, 0.4) or "")
    with pytest.raises(ValueError, match="different sequences"):
        one.greatest_difference(dataclasses.replace(one, sequences=((1, 2, 3), (4, 5, 7))))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": {"model": "m"}}'])
def test_a_file_that_is_no_record(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ValueError, match=r"r\.json: not a record of a teacher"):
        ProbeRecord.load(tmp_path / "r.json")


async def test_a_teacher_that_does_not_answer(model: Qwen3ForCausalLM) -> None:
    with pytest.raises(TeacherUnavailableError, match="gone"):
        await take_probe(BrokenScorer(model), FINGERPRINT, probe_sequences(VOCAB))


# ---- external servers

SECRET = "secret-123"
SERVED = TeacherFingerprint("", None, "float32", "auto", "0.5.21", "/models/teacher default")


async def serve(model_info: Any, server_info: Any, authorizations: list[str | None]) -> tuple[web.AppRunner, str]:
    """What SGLang 0.5.21 answers, as far as we read it; a string is sent as it is."""

    def answer(value: Any) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            authorizations.append(request.headers.get("Authorization"))
            if isinstance(value, int):
                return web.Response(status=value)
            return web.json_response(text=value) if isinstance(value, str) else web.json_response(value)

        return handle

    app = web.Application()
    app.router.add_get("/model_info", answer(model_info))
    app.router.add_get("/server_info", answer(server_info))
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


MODEL_INFO = {"model_path": "/models/teacher", "weight_version": "default", "tokenizer_path": "/models/teacher"}
SERVER_INFO = {
    "api_key": SECRET,
    "quantization": None,
    "dtype": "float32",
    "kv_cache_dtype": "auto",
    "version": "0.5.21",
}


async def test_what_a_server_says_of_itself_without_its_key() -> None:
    authorizations: list[str | None] = []
    runner, url = await serve(MODEL_INFO, SERVER_INFO, authorizations)
    found = await served_fingerprint(["http://127.0.0.1:9", f"{url}/"], SECRET)  # nobody listens on the first
    await runner.cleanup()
    assert found == SERVED
    assert authorizations == [f"Bearer {SECRET}"] * 2
    assert SECRET not in json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("model_info", "server_info", "error", "message"),
    [
        (401, 401, TeacherUnavailableError, r"teacher\.urls: .*401"),
        (MODEL_INFO, 500, TeacherUnavailableError, "500"),
        ("<html>", SERVER_INFO, TeacherResponseError, "does not answer in JSON"),
        (MODEL_INFO, {"api_key": SECRET}, TeacherResponseError, "does not describe itself as SGLang does"),
        ([], SERVER_INFO, TeacherResponseError, "does not describe itself as SGLang does"),
    ],
)
async def test_servers_that_do_not_say(model_info: Any, server_info: Any, error: type, message: str) -> None:
    runner, url = await serve(model_info, server_info, [])
    with pytest.raises(error, match=message) as caught:
        await served_fingerprint([url], SECRET)
    await runner.cleanup()
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)


async def test_an_external_teacher_is_recognised_by_its_probe(store: ScoreStore, model: Qwen3ForCausalLM) -> None:
    first = await recognise(SERVED, TransformersScorer(model), VOCAB, store)
    # Below the tolerance, as between two runs of one server: the same teacher, though few floats are the same.
    near = await recognise(SERVED, TransformersScorer(with_noise(model, 1e-6)), VOCAB, store)
    far = await recognise(SERVED, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store)
    other = await recognise(dataclasses.replace(SERVED, sglang_version="0.6"), TransformersScorer(model), VOCAB, store)
    assert near == first
    assert len({first.id, far.id, other.id}) == 3
    assert list(store.teachers()) == [first.id, far.id, other.id]
    assert await recognise(SERVED, TransformersScorer(model), VOCAB, store) == first  # the nearest, not the last
    assert await recognise(SERVED, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store, 50.0) == far
    loose = dataclasses.replace(SERVED, dtype="bfloat16")
    bf16 = await recognise(loose, TransformersScorer(model), VOCAB, store)
    assert await recognise(loose, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store) == bf16
    with pytest.raises(TeacherUnavailableError):
        await recognise(SERVED, BrokenScorer(model), VOCAB, store)


async def test_one_door_for_every_teacher(
    store: ScoreStore,
    folder: Path,
    python: str,
    model: Qwen3ForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MY_KEY", SECRET)
    managed = TeacherConfig(model_path=str(folder), python=python, store_path=str(store.path.parent))
    replay = dataclasses.replace(managed, store_mode="replay", python="/not/needed")
    with pytest.raises(ValueError, match=r"teacher\.store_path: 0 of the 0 teachers"):
        await fingerprint_for_store(replay, store, [], None, VOCAB)
    of_files = await fingerprint_for_store(managed, store, [], None, VOCAB)
    assert of_files.sglang_version == "9.9.9"
    assert await fingerprint_for_store(replay, store, [], None, VOCAB) == of_files

    authorizations: list[str | None] = []
    runner, url = await serve(MODEL_INFO, SERVER_INFO, authorizations)
    external = TeacherConfig(mode="external", urls=[url], api_key_env="MY_KEY")
    served = await fingerprint_for_store(external, store, [url], TransformersScorer(model), VOCAB)
    await runner.cleanup()
    assert authorizations[0] == f"Bearer {SECRET}"
    assert served.served_as == "/models/teacher default"
    assert SECRET not in json.dumps(store.teachers())
    assert await fingerprint_for_store(replay, store, [], None, VOCAB) == of_files  # two are known, one is meant
    with pytest.raises(ValueError, match=r"2 of the 2 teachers .* needs exactly one"):
        await fingerprint_for_store(
            dataclasses.replace(external, store_mode="replay", store_path="x"), store, [], None, VOCAB
        )
    edit_byte(folder / "model.safetensors")
    with pytest.raises(ValueError, match="0 of the 2 teachers"):
        await fingerprint_for_store(replay, store, [], None, VOCAB)
