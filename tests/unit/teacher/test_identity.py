"""How a server without files is recognised, and one door for every teacher."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_sglang
import pytest
from aiohttp import web
from fake_sglang import MODEL_INFO
from tiny_teacher import VOCAB, BrokenScorer, TransformersScorer, edit_byte, with_noise
from transformers import Qwen3ForCausalLM

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.store.fingerprint import TeacherFingerprint
from verl_ext.teacher.store.identity import fingerprint_for_store, recognise, served_fingerprint
from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import TeacherResponseError, TeacherUnavailableError

SECRET = "secret-123"
EXTERNAL = TeacherConfig(mode="external", urls=["http://unused"], api_key_env="MY_KEY")
SERVED = TeacherFingerprint("", None, "float32", "auto", "sglang", "0.5.21", "/models/teacher default")


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


SERVER_INFO = fake_sglang.SERVER_INFO | {"api_key": SECRET}


async def test_what_a_server_says_of_itself_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    authorizations: list[str | None] = []
    runner, url = await serve(MODEL_INFO, SERVER_INFO, authorizations)
    monkeypatch.setenv("MY_KEY", SECRET)
    found = await served_fingerprint(["http://127.0.0.1:9", f"{url}/"], EXTERNAL)  # nobody listens on the first
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
        (MODEL_INFO, {"api_key": SECRET}, TeacherResponseError, "does not report its settings as SGLang does"),
        ([], SERVER_INFO, TeacherResponseError, "does not report its settings as SGLang does"),
    ],
)
async def test_servers_that_do_not_say(
    model_info: Any, server_info: Any, error: type, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    runner, url = await serve(model_info, server_info, [])
    with pytest.raises(error, match=message) as caught:
        await served_fingerprint([url], EXTERNAL)
    await runner.cleanup()
    assert SECRET not in str(caught.value) + repr(caught.value.__cause__)


async def test_an_external_teacher_is_recognised_by_its_probe(store: ScoreStore, model: Qwen3ForCausalLM) -> None:
    first = await recognise(SERVED, TransformersScorer(model), VOCAB, store)
    # Below the tolerance, as between two runs of one server: the same teacher, though few floats are the same.
    near = await recognise(SERVED, TransformersScorer(with_noise(model, 1e-6)), VOCAB, store)
    far = await recognise(SERVED, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store)
    other = await recognise(dataclasses.replace(SERVED, engine_version="0.6"), TransformersScorer(model), VOCAB, store)
    assert near == first
    assert len({first.id, far.id, other.id}) == 3
    assert list(store.teachers()) == [first.id, far.id, other.id]
    store_before = set(store.teachers())
    assert await recognise(SERVED, TransformersScorer(model), VOCAB, store) == first  # the nearest, not the last
    nearly = TransformersScorer(with_noise(model, 3e-4))
    assert (await recognise(SERVED, nearly, VOCAB, store, 50.0)).id not in store_before  # a tolerance never widens
    assert await recognise(SERVED, TransformersScorer(with_noise(model, 1e-6)), VOCAB, store, 1e-12) != first
    loose = dataclasses.replace(SERVED, dtype="bfloat16")
    bf16 = await recognise(loose, TransformersScorer(model), VOCAB, store)
    assert await recognise(loose, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store) == bf16
    with pytest.raises(TeacherUnavailableError):
        await recognise(SERVED, BrokenScorer(model), VOCAB, store)


async def test_a_score_of_one_engine_is_used_under_another_where_the_probe_says_so(
    store: ScoreStore, model: Qwen3ForCausalLM
) -> None:
    vllm = dataclasses.replace(SERVED, engine="vllm", engine_version="0.28.0", kv_cache_dtype="unsaid")
    first = await recognise(SERVED, TransformersScorer(model), VOCAB, store)
    assert await recognise(vllm, TransformersScorer(with_noise(model, 1e-6)), VOCAB, store) == first
    other_model = await recognise(vllm, TransformersScorer(with_noise(model, 1e-3)), VOCAB, store)
    elsewhere = dataclasses.replace(vllm, served_as="/models/other default")
    other_path = await recognise(elsewhere, TransformersScorer(model), VOCAB, store)
    # Below float32 rounding is as much as another model: nothing is shared between engines.
    loose = await recognise(dataclasses.replace(SERVED, dtype="bfloat16"), TransformersScorer(model), VOCAB, store)
    loose_vllm = await recognise(dataclasses.replace(vllm, dtype="bfloat16"), TransformersScorer(model), VOCAB, store)
    assert len({each.id for each in (first, other_model, other_path, loose, loose_vllm)}) == 5
    assert {other_model.engine, other_path.engine, loose_vllm.engine} == {"vllm"}


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
    assert of_files.engine_version == "9.9.9"
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
    for other in ({"dtype": "bfloat16"}, {"extra_args": ["--random-seed", "7"]}):  # each decides whose scores they are
        with pytest.raises(ValueError, match="0 of the 2 teachers"):
            await fingerprint_for_store(dataclasses.replace(replay, **other), store, [], None, VOCAB)
    edit_byte(folder / "model.safetensors")
    with pytest.raises(ValueError, match="0 of the 2 teachers"):
        await fingerprint_for_store(replay, store, [], None, VOCAB)
