"""A process that is started before verl asks for it is handed out once, and only for what it was started with."""

from types import SimpleNamespace

import pytest

from verl_ext.trainer import early


class Server:
    def __init__(self, model: str) -> None:
        if not model:
            raise ValueError("no model")
        self.model = model


class Handle:
    """A Ray actor's handle, in this process."""

    def __init__(self, actor):
        self.actor, self.killed = actor, False

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *words, **named: (getattr(self.actor, name), words, named))


class Ray:
    """Of Ray, as much as starts an actor; what was started, and with which options."""

    def __init__(self):
        self.started = []

    def remote(self, actor_class):
        def options(**options):
            def start(*words, **named):
                self.started.append((actor_class, options))
                return Handle(actor_class(*words, **named))

            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def get(self, call):
        method, words, named = call
        return method(*words, **named)

    def kill(self, handle):
        handle.killed = True


@pytest.fixture
def ray(monkeypatch):
    ray = Ray()
    monkeypatch.setattr(early, "ray", ray)
    return ray


def started(**options):
    return early.EarlyActor(Server, indifferent=("scheduling_strategy",), **options)


def test_its_process_is_there_before_it_is_asked_for_and_becomes_the_actor(ray):
    actor_class = started(name="vllm_0")
    assert len(ray.started) == 1
    handle = actor_class.options(name="vllm_0", scheduling_strategy="there").remote(model="tiny")
    assert len(ray.started) == 1
    assert isinstance(handle.actor, Server)
    assert handle.actor.model == "tiny"


def test_a_second_one_is_an_actor_like_any_other(ray):
    actor_class = started(name="vllm_0")
    first = actor_class.options(name="vllm_0").remote(model="tiny")
    second = actor_class.options(name="vllm_1").remote(model="large")
    assert [(kind, options["name"]) for kind, options in ray.started[1:]] == [(Server, "vllm_1")]
    assert (first.actor.model, second.actor.model) == ("tiny", "large")


def test_one_that_is_asked_for_otherwise_is_ended_and_replaced(ray):
    actor_class = started(name="vllm_0", max_concurrency=1000)
    empty = actor_class._handle
    handle = actor_class.options(name="vllm_0", max_concurrency=2000).remote(model="tiny")
    assert empty.killed
    assert handle is not empty
    assert ray.started[1] == (Server, {"name": "vllm_0", "max_concurrency": 2000})


def test_an_error_of_its_construction_is_raised_where_verl_constructs_it(ray):
    del ray
    with pytest.raises(ValueError, match="no model"):
        started().options().remote(model="")
