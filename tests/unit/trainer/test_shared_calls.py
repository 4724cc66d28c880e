"""Requests travel together, answers arrive one by one: client and server in one process, with calls as Ray's."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from ray.exceptions import RayActorError
from verl.workers.rollout import router
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.router import GlobalRequestLoadBalancer

from verl_ext.trainer.shared_calls import Answering, SamplerLost, balance_one_server_here, share_calls

CONFIG = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": "vllm", "full_determinism": False}}})


class Handle:
    """A Ray actor's handle: methods with `.remote`, called in the order of the calls; counts them by name."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.calls, self.dead = actor, [], False

    def __getattr__(self, name: str) -> Any:
        def remote(*words: Any, **named: Any) -> asyncio.Task:
            self.calls.append(name)
            return asyncio.create_task(self._call(name, words, named))

        return SimpleNamespace(remote=remote)

    async def _call(self, name: str, words: tuple, named: dict) -> Any:
        if self.dead:
            raise RayActorError
        result = getattr(self.actor, name)(*words, **named)
        return await result if asyncio.iscoroutine(result) else result


class Engine:
    """Answers with its prompt's number when it is told to."""

    def __init__(self) -> None:
        self.ends: dict[int, asyncio.Event] = {}

    async def generate(self, prompt_ids: list[int], **_: Any) -> TokenOutput:
        await self.ends.setdefault(prompt_ids[0], asyncio.Event()).wait()
        if prompt_ids[0] < 0:
            raise ValueError("no such token")
        return TokenOutput(token_ids=prompt_ids, extra_fields={"global_steps": 3})


class Cluster:
    def __init__(self, servers: int) -> None:
        self.engines = [Engine() for _ in range(servers)]
        self.handles = [Handle(Answering(engine.generate)) for engine in self.engines]
        self.balancer = Handle(GlobalRequestLoadBalancer({f"s{i}": handle for i, handle in enumerate(self.handles)}))
        self.client = LLMServerClient(CONFIG, load_balancer_handle=self.balancer)  # pyright: ignore[reportArgumentType]
        share_calls(self.client)

    def ask(self, number: int) -> asyncio.Task:
        return asyncio.create_task(self.client.generate(f"r{number}", prompt_ids=[number], sampling_params={}))

    async def end(self, *numbers: int) -> None:
        for _ in range(50):
            await asyncio.sleep(0)
        for engine in self.engines:
            for number in numbers:
                engine.ends.setdefault(number, asyncio.Event()).set()


async def test_requests_that_are_ready_together_take_one_call_and_each_answer_comes_when_it_ends():
    cluster = Cluster(1)
    asked = [cluster.ask(number) for number in range(8)]
    await cluster.end(5)
    assert (await asked[5]).token_ids == [5]
    assert not any(task.done() for task in asked if task is not asked[5])
    await cluster.end(*range(8))
    assert [(await task).token_ids for task in asked] == [[number] for number in range(8)]
    assert cluster.handles[0].calls.count("begin") == 1
    assert cluster.handles[0].calls.count("ended") <= 3
    assert (await asked[0]).extra_fields["max_global_steps"] == 3


async def test_a_single_server_is_asked_for_once_and_several_for_each_request():
    for servers, wanted in ((1, 1), (2, 6)):
        cluster = Cluster(servers)
        asked = [cluster.ask(number) for number in range(6)]
        await cluster.end(*range(6))
        await asyncio.gather(*asked)
        assert cluster.balancer.calls.count("acquire_server") == wanted
        await cluster.end()
        assert cluster.balancer.actor.get_total_inflight() == 0
        assert all("begin" in handle.calls for handle in cluster.handles)


async def test_an_error_is_heard_by_the_one_who_asked():
    cluster = Cluster(1)
    asked = [cluster.ask(number) for number in (-1, 1)]
    await cluster.end(-1, 1)
    with pytest.raises(RuntimeError, match="ValueError: no such token"):
        await asked[0]
    assert (await asked[1]).token_ids == [1]


async def test_a_dead_server_is_heard_by_all_and_another_is_asked_for():
    cluster = Cluster(1)
    asked = [cluster.ask(1)]
    await cluster.end()
    cluster.handles[0].dead = True
    asked.append(cluster.ask(2))
    await cluster.end(1)
    with pytest.raises(SamplerLost):
        await asked[1]
    cluster.handles[0].dead = False
    again = cluster.ask(3)
    await cluster.end(3)
    assert (await again).token_ids == [3]
    assert cluster.balancer.calls.count("acquire_server") == 2


@pytest.mark.parametrize("missing", ["begin", "ended"])
async def test_a_fault_is_heard_as_it_is_and_not_as_a_dead_server(monkeypatch, missing):
    cluster = Cluster(1)

    def of_ray(handle: Handle, name: str) -> Any:
        if name == missing:
            raise AttributeError(f"'ActorHandle' object has no attribute '{name}'")
        return Handle.__getattr__(handle, name)

    monkeypatch.setattr(cluster.handles[0], "__class__", type("Other", (Handle,), {"__getattr__": of_ray}))
    with pytest.raises(AttributeError, match=f"no attribute '{missing}'"):
        await asyncio.wait_for(cluster.ask(1), 5)


def test_where_there_is_one_server_the_client_has_its_load_balancer(monkeypatch):
    """Sent to an agent loop's process, as a client is; two servers, or a router of the user's, are verl's."""
    made = []
    monkeypatch.setattr(router, "get_router_handle", lambda *asked, **named: made.append((asked, named)))
    balance_one_server_here()

    async def asked() -> TokenOutput:
        engine = Engine()
        balancer = router.get_router_handle({"s": None}, router_config_path=None, load_balancer_cls=None)
        balancer = pickle.loads(pickle.dumps(balancer))
        balancer.add_servers.remote({"s": Handle(Answering(engine.generate))})
        client = LLMServerClient(CONFIG, load_balancer_handle=balancer)
        share_calls(client)
        answer = asyncio.create_task(client.generate("r", prompt_ids=[7], sampling_params={}))
        await asyncio.sleep(0.01)
        engine.ends[7].set()
        return await answer

    assert asyncio.run(asked()).token_ids == [7]
    assert not made
    router.get_router_handle({"a": None, "b": None})
    router.get_router_handle({"a": None}, router_config_path="router.yaml")
    assert len(made) == 2
