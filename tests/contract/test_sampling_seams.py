"""Where verl 0.9.1 starts and asks the student's vLLM servers and hands them weights, as far as we stand on it.

A red test here means that verl or vLLM changed under us; the adapter it names is what to mend.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from seams import parameters
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import RolloutReplicaRegistry, TokenOutput, get_rollout_replica_class
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter
from vllm import SamplingParams

from verl_ext.trainer import (
    runner,
    sampler,
)
from verl_ext.trainer.support import ASKED, IDS, LOGPROBS


def test_an_answers_end_is_noted_where_verls_server_asks_vllm():
    """verl's own `stop_reason` is `completed` for an end token and for a cut."""
    source = inspect.getsource(vLLMHttpServer.generate)
    assert 'finish_reason in ("stop", "length"):\n            stop_reason = "completed"' in source
    assert "self.engine.generate(" in source
    assert "request_id=request_id" in source
    assert "self.engine = engine_client" in inspect.getsource(vLLMHttpServer.run_server)
    assert parameters(vLLMHttpServer.run_server) == parameters(sampler.FinishReasonServer.run_server)
    assert "request_id=self._vllm_request_id(request_id)" in inspect.getsource(LLMServerClient.generate)
    assert "extra_fields=output.extra_fields" in inspect.getsource(SingleTurnAgentLoop.run)


def test_verl_starts_our_server_in_place_of_its_own(composed_config, monkeypatch):
    """Whatever is registered under `vllm` is asked for when the actor has loaded, by `runner.py` to be ours."""
    composed_config.trainer.nnodes = 2  # whose servers are not started early
    monkeypatch.setitem(RolloutReplicaRegistry._registry, "vllm", lambda: runner.start_engines(composed_config))
    assert get_rollout_replica_class("vllm") is sampler.FinishReasonReplica
    assert "self.server_class.options(" in inspect.getsource(vLLMReplica.launch_servers)


def test_an_engine_that_compiles_nothing_is_forked(monkeypatch):
    forked = []
    monkeypatch.setattr(vLLMHttpServer, "__init__", lambda self, config: setattr(self, "config", config))
    monkeypatch.setattr(sampler, "spawn_warm", lambda: forked.append("spawned from now on"))
    for eager in (False, True):
        server = sampler.FinishReasonServer(SimpleNamespace(enforce_eager=eager))
        assert server.config.enforce_eager is eager  # what verl's own sets, which we read
        assert len(forked) == eager


def test_the_server_that_is_started_early_is_the_one_that_verl_asks_for():
    source = inspect.getsource(vLLMReplica.launch_servers)
    for words in (
        'name = f"{prefix}server_{self.replica_rank}_{node_rank}{self.name_suffix}"',
        '**{var: "1" for var in get_platform().ray_noset_envvars()}',
        "**get_platform().rollout_env_vars()",
        'runtime_env={"env_vars": env_vars}',
        "max_concurrency=self.max_concurrency",
    ):
        assert words in source
    options = sampler.verls_options(SimpleNamespace(max_num_seqs=5_000))
    assert set(options) == {"runtime_env", "name", "max_concurrency"}
    assert options["max_concurrency"] > 5_000
    assert vLLMReplica._get_server_name_prefix(None) + "server_0_0" == options["name"]  # pyright: ignore[reportArgumentType]


async def test_each_answers_own_reason_is_noted_and_strangers_are_not():
    async def answers(prompt: str, _parameters: None, request_id: str):
        for reason in (None, prompt):
            yield SimpleNamespace(request_id=request_id, outputs=[SimpleNamespace(finish_reason=reason)])

    server = object.__new__(sampler.FinishReasonServer)  # the rest of it needs an engine
    server._reasons, server._scored, server._likely = {"ours": None}, {}, {}
    generate = server._noting(answers)
    for request_id, reason in (("ours", "length"), ("over HTTP", "stop")):
        assert len([output async for output in generate(reason, None, request_id)]) == 2
    assert server._reasons == {"ours": "length"}


async def test_the_most_likely_tokens_come_with_the_answers_that_ask_for_them(monkeypatch):
    """verl asks vLLM for the sampled token alone, and reads no other."""
    places = [{7: SimpleNamespace(rank=9, logprob=-5.0), 3: SimpleNamespace(rank=1, logprob=-0.5)}]
    asked = []

    async def answers(prompt, sampling_params, request_id):
        del prompt
        asked.append((sampling_params.logprobs, sampling_params.detokenize))
        outputs = [SimpleNamespace(finish_reason="length", logprobs=places)]
        yield SimpleNamespace(request_id=request_id, outputs=outputs)

    server = object.__new__(sampler.FinishReasonServer)  # the rest of it needs an engine
    server._reasons, server._scored, server._likely = {}, {}, {}

    async def of_verl(_self, *, request_id, sampling_params):
        words = SamplingParams(logprobs=0 if sampling_params.pop("logprobs") else None, **sampling_params)
        async for _ in server._noting(answers)(None, words, request_id):
            pass
        return TokenOutput(token_ids=[7], extra_fields={})

    source = inspect.getsource(vLLMHttpServer.generate)
    assert "sampling_params = SamplingParams(max_tokens=max_tokens, **sampling_params)" in source
    assert "log_probs = [logprobs[token_ids[i]].logprob" in source
    assert "output_kind" not in source  # so that an answer's last output holds all of it
    monkeypatch.setattr(vLLMHttpServer, "generate", of_verl)
    given = {"logprobs": True, "temperature": 1.0}
    plain = await server.generate(request_id="plain", sampling_params=given)
    with_likely = await server.generate(request_id="likely", sampling_params=given | {ASKED: 1})
    stopped = await server.generate(request_id="stop", sampling_params=given | {"stop": ["\n"]})
    assert asked == [(0, False), (1, False), (0, True)]  # text is made where something is looked for in it
    assert stopped.extra_fields == {"finish_reason": "length"}
    assert plain.extra_fields == {"finish_reason": "length"}
    assert with_likely.extra_fields.pop(IDS).tolist() == [[3]]
    assert with_likely.extra_fields.pop(LOGPROBS).tolist() == [[-0.5]]
    assert given == {"logprobs": True, "temperature": 1.0}
    assert (server._reasons, server._likely) == ({}, {})


@pytest.mark.parametrize(("of_vllm", "room"), [({}, 1), ({"vllm": {"max_loras": 2}}, 2), ({"vllm": None}, 1)])
async def test_as_many_adapters_as_the_run_asks_for_have_room(of_vllm, room, monkeypatch):
    """verl writes 1 over what a run's `engine_kwargs` say."""
    assert '"max_loras": 1,' in inspect.getsource(vLLMHttpServer.launch_server)
    started = []

    async def run_server(_, args) -> None:
        started.append(args)

    monkeypatch.setattr(vLLMHttpServer, "run_server", run_server)
    server = object.__new__(sampler.FinishReasonServer)
    server.config = SimpleNamespace(engine_kwargs=of_vllm, prometheus=SimpleNamespace(enable=False))
    server.engine = SimpleNamespace(generate=None)
    monkeypatch.setattr(sampler, "middleware_of", lambda _: "door")
    await server.run_server(SimpleNamespace(middleware=[], max_loras=1))
    assert (started[0].max_loras, started[0].middleware) == (room, ["door"])


@pytest.mark.parametrize(("adapter", "number"), [("none", None), ("student", 123), ("earlier", 124)])
async def test_what_is_scored_is_read_with_the_adapter_that_is_asked_for(adapter, number):
    """verl hands the student's to every request."""
    asked = []

    async def answers(prompt, sampling_params, request_id, lora_request, priority):
        del prompt, sampling_params, priority
        asked.append(lora_request)
        place = {7: SimpleNamespace(rank=1, logprob=-0.5)}
        outputs = [SimpleNamespace(finish_reason="length")]
        yield SimpleNamespace(
            **{"request_id": request_id, "outputs": outputs, "finished": True, "prompt_token_ids": [4, 7]},
            prompt_logprobs=[None, place],
        )

    server = object.__new__(sampler.FinishReasonServer)  # the rest of it needs an engine
    server._reasons, server._scored, server._likely = (
        {"ours": None},
        {"ours": {"start": 1, "top_k": 0, "adapter": adapter}},
        {},
    )
    students = SimpleNamespace(lora_int_id=VLLM_LORA_INT_ID)
    words = {"prompt": None, "sampling_params": None, "lora_request": students, "priority": 0}
    for request_id in ("ours", "another"):
        assert len([output async for output in server._noting(answers)(request_id=request_id, **words)]) == 1
    assert [each and each.lora_int_id for each in asked] == [number, VLLM_LORA_INT_ID]
    assert server._scored == {"ours": {"logprobs": [-0.5], "top_ids": [[]], "top_logprobs": [[]]}}
    source = inspect.getsource(vLLMHttpServer.generate)
    for word in (
        "lora_request=lora_request",
        "request_id=request_id",
        "num_prompt_logprobs=sampling_params.prompt_logpr",
    ):
        assert word in source
    assert 'sampling_params["logprobs"] = 0 if sampling_params.pop("logprobs", False) else None' in source


def test_rows_of_a_prompt_get_no_adapters_part_of_the_logits(monkeypatch):
    """vLLM gives them an adapter by a list that does not hold them (`vllm_prompts.py`)."""
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
    from vllm.lora.punica_wrapper import punica_cpu, punica_gpu

    from verl_ext.platform.vllm_prompts import base_logits_of_prompts

    assert "self.sampler_indices" in inspect.getsource(punica_cpu.PunicaWrapperCPU.add_lora_logits)
    assert "x.size(0)" in inspect.getsource(punica_gpu.PunicaWrapperGPU.add_lora_logits)
    monkeypatch.setattr(LogitsProcessorWithLoRA, "_get_logits", LogitsProcessorWithLoRA._get_logits)
    base_logits_of_prompts()

    class Kernels:
        sampler_indices = torch.zeros(2, dtype=torch.long)

        def add_lora_logits(self, logits, *_):
            return logits.add_(1.0)

    base = SimpleNamespace(
        **{"_apply_head": lambda _head, hidden, _bias: hidden.clone(), "_gather_logits": lambda logits: logits},
        vocab_size=4,
    )
    layer = SimpleNamespace(base_layer=base, sharded_to_full_mapping_gpu=None, punica_wrapper=Kernels())
    layer.lora_a_stacked = layer.lora_b_stacked = None
    for rows, added in ((2, 1.0), (3, 0.0), (1, 0.0)):
        logits = LogitsProcessorWithLoRA._get_logits(layer, torch.zeros(rows, 4), SimpleNamespace())
        assert logits.tolist() == [[added] * 4] * rows
    assert isinstance(layer.punica_wrapper, Kernels)
    Kernels.sampler_indices = torch.zeros(1, dtype=torch.long)  # one request alone
    assert LogitsProcessorWithLoRA._get_logits(layer, torch.zeros(3, 4), SimpleNamespace()).tolist() == [[1.0] * 4] * 3


def test_a_tensor_beyond_the_bucket_is_sent_alone_with_shared_handles_only():
    """Why `make_room_for_weights` looks at `is_support_ipc`."""
    source = inspect.getsource(BucketedWeightSender.async_send_weights)
    assert "assert not self.use_shm" in source
    assert "self._direct_send_large_weight(name, weight)" in source
    assert "self.use_shm = not is_support_ipc()" in inspect.getsource(ServerAdapter.__init__)
