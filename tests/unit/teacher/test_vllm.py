"""A vLLM server as teacher, through the pool: asked once a sample, never primed, proved as SGLang is."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fake_sglang import PROMPT, RESPONSE, VOCAB, FakeSGLang, expected, open_pool, score, serve
from fake_vllm import FakeVLLM

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.client.served import ServerInfo
from verl_ext.teacher.config import ENGINES, TeacherConfig
from verl_ext.teacher.engines.engine import Served
from verl_ext.teacher.engines.known import KNOWN, engine_of
from verl_ext.teacher.server.command import build_arguments, build_environment
from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError, TeacherUnavailableError

ENGINE = {"engine": "vllm"}


def external(url: str, **more: Any) -> TeacherConfig:
    return TeacherConfig(mode="external", engine="vllm", urls=[url], **more)


@pytest.fixture
async def fake():
    fake = FakeVLLM()
    runner = await serve(fake)
    yield fake
    await runner.cleanup()


async def test_a_sample_is_scored_whole_and_no_prompt_is_primed(fake: FakeVLLM) -> None:
    async with open_pool(fake, **ENGINE) as pool:
        request = ScoreRequest(PROMPT, RESPONSE)
        await pool.prime(request)
        assert fake.requests == []
        found = await pool.score([request, ScoreRequest(PROMPT, RESPONSE[:2], top_k=3)])
        metrics = pool.metrics()
    assert all(isinstance(each, Score) for each in found)
    assert found[0].logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE))
    assert found[1].logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE[:2]))
    assert found[1].top_ids.tolist() == [[0, 1, 2]] * 2
    assert [len(body["prompt"]) for body in fake.requests] == [3]  # and the canary
    assert metrics["cached_tokens"] == 0
    assert metrics["sequences"] == 2


async def test_named_tokens_are_not_asked_of_it(fake: FakeVLLM) -> None:
    async with open_pool(fake, **ENGINE) as pool:
        with pytest.raises(ValueError, match=r"teacher\.engine=vllm scores no tokens .*=sglang"):
            await score(pool, PROMPT, RESPONSE, support_ids=np.ones((4, 2), np.int32))
    assert fake.requests == []


async def test_the_key_is_sent_and_a_wrong_one_is_named(fake: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-of-the-test")
    async with open_pool(fake, **ENGINE, api_key_env="MY_KEY") as pool:
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
        assert fake.authorizations == ["Bearer secret-of-the-test"]
        fake.faults = [lambda *_: web.json_response({"error": "Unauthorized"}, status=401)]
        refusal = await score(pool, PROMPT, RESPONSE)
    assert isinstance(refusal, TeacherResponseError)
    assert re.search(r"/v1/completions refused the request \(401; set MY_KEY\)", str(refusal))
    assert "secret" not in str(refusal)


async def test_a_missing_position_is_asked_for_again_and_never_becomes_a_score(fake: FakeVLLM) -> None:
    def lose(_request: web.Request, choice: dict[str, Any]) -> None:
        choice["prompt_logprobs"].pop(3)

    async with open_pool(fake, **ENGINE) as pool:
        fake.faults = [lose]
        found = await score(pool, PROMPT, RESPONSE)
        assert found.logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE))
        assert pool.metrics()["retries"] == 1
        fake.faults = [lose] * 9
        error = await score(pool, PROMPT, RESPONSE)
    assert isinstance(error, TeacherUnavailableError)
    assert "6 entries for 7 tokens" in str(error)


async def test_another_model_on_the_port_is_seen_by_its_first_answer(fake: FakeVLLM) -> None:
    async with open_pool(fake, **ENGINE, sample_timeout_s=1) as pool:
        fake.model = 0.01
        error = await score(pool, PROMPT, RESPONSE)
    assert isinstance(error, TeacherUnavailableError)
    assert "serves another model than before: its canary is off by up to 0.01 nats" in str(error)


async def test_a_server_of_the_other_engine_is_named_as_that(fake: FakeVLLM) -> None:
    async with TeacherPool(TeacherConfig(mode="external", urls=[fake.url]), VOCAB) as pool:
        with pytest.raises(TeacherResponseError, match=r"\(404; is it no SGLang\? set teacher\.engine\)"):
            await pool.probe()
    runner = await serve(sglang := FakeSGLang())
    async with TeacherPool(external(sglang.url), VOCAB) as pool:
        with pytest.raises(TeacherResponseError, match=r"\(404; is it no vLLM\? set teacher\.engine\)"):
            await pool.probe()
    await runner.cleanup()


async def test_what_it_says_of_itself_is_the_base_model_and_not_an_adapter(fake: FakeVLLM) -> None:
    fake.info["data"].insert(0, {"id": "lora", "root": "/adapter", "parent": "teacher"})
    fake.tokenize = lambda text: [len(text), 3]
    async with ServerInfo(fake.url, external(fake.url, dtype="bfloat16")) as server:
        assert await server.served() == Served(
            "/models/teacher", "teacher", "default", "bfloat16", None, "unsaid", "0.28.0"
        )
        assert await server.tokenize(["ab", "c"]) == [[2, 3], [1, 3]]
        for wrong in ({"data": []}, {"data": [{"root": "x"}]}, {"data": 3}, {"models": []}):
            fake.info = wrong
            with pytest.raises(TeacherResponseError, match="does not report its settings as vLLM does"):
                await server.served()
        fake.info = {}
        with pytest.raises(TeacherResponseError, match="/v1/models answered 404"):
            await server.served()


def test_every_engine_that_may_be_named_is_there():
    assert tuple(KNOWN) == ENGINES
    with pytest.raises(ValueError, match=r"teacher\.engine: 'tgi' must be one of sglang, vllm"):
        TeacherConfig(model_path="m", engine="tgi")
    with pytest.raises(ValueError, match=r"teacher\.engine: 'tgi' must be one of sglang, vllm"):
        engine_of("tgi")


def managed(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**{"model_path": "some/model", "engine": "vllm", **changes})


def test_what_the_server_is_started_with() -> None:
    words = build_arguments(managed(extra_args=["--max-num-seqs", "8"], max_total_tokens=1000), port=9)
    options = dict(itertools.pairwise(words))
    assert Path(words[0]).is_file()
    assert (options["--model"], options["--host"], options["--port"]) == ("some/model", "127.0.0.1", "9")
    assert (options["--dtype"], options["--load-format"]) == ("float32", "safetensors")
    assert options["--num-gpu-blocks-override"] == "8"  # of 128 tokens
    assert words[-2:] == ["--max-num-seqs", "8"]
    assert "--max-model-len=-1" in words
    on_gpu = build_arguments(managed(device="cuda", quantization="fp8", tp=2, dp=3, context_length=512), port=9)
    options = dict(itertools.pairwise(on_gpu))
    assert (options["--tensor-parallel-size"], options["--data-parallel-size"]) == ("2", "3")
    assert (options["--quantization"], options["--gpu-memory-utilization"]) == ("fp8", "0.5")
    assert "--max-model-len=512" in on_gpu
    assert "--num-gpu-blocks-override" not in on_gpu
    assert not {"--enable-lora", "--trust-remote-code", "--kv-cache-dtype", "--api-key"} & {*words, *on_gpu}
    assert "--trust-remote-code" in build_arguments(managed(trust_remote_code=True), port=9)


def test_the_trainers_own_vllm_leaves_nothing_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    doors = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "VLLM_API_KEY", "VLLM_PLUGINS")
    for name in (*doors, "TEACHER_API_KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    environment = build_environment(managed(), Path("/env/bin/python"))
    assert not {*doors, "TEACHER_API_KEY", "PYTHONPATH"} & set(environment)
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in build_environment(managed(device="cuda"), Path("/env/bin/python"))
