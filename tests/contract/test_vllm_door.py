"""vLLM's HTTP application as verl builds it: our door stands around every route of it."""

import inspect
from argparse import Namespace
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from vllm.entrypoints.openai.api_server import build_app
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from verl_ext.trainer import sampler
from verl_ext.trainer.vllm_door import middleware_of

ANSWER = ("GET", "/version")  # the one route that needs no engine
LORA = ("POST", "/v1/load_lora_adapter")


@pytest.fixture
def app_of(monkeypatch) -> Callable[..., FastAPI]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "true")  # at its worst

    def build(*, key: str = "", prometheus: bool = False) -> FastAPI:
        if key:
            monkeypatch.setenv("VLLM_API_KEY", key)
        args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        args.middleware = [*args.middleware, middleware_of(prometheus)]
        return build_app(args, supported_tasks=("generate",))

    return build


def status(app: FastAPI, method: str, path: str, **headers: str) -> int:
    return TestClient(app).request(method, path, headers=headers).status_code


def test_nobody_is_answered_where_there_is_no_key(app_of):
    app = app_of()
    routes = [(method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods]
    assert {ANSWER, LORA} <= set(routes)
    assert len(routes) > 20
    for method, path in (*routes, ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/none")):
        for given in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}, {"Authorization": "None"}):
            assert status(app, method, path, **given) == 401, (method, path)


def test_the_key_of_vllms_own_variable_lets_in(app_of):
    key = "0123456789abcdef"
    app = app_of(key=key)
    assert status(app, *ANSWER, Authorization=f"Bearer {key}") == 200
    for wrong in (f"Bearer {key}0", f"Bearer {key[:-1]}", key, f"bearer {key}", "Bearer"):
        assert status(app, *ANSWER, Authorization=wrong) == 401


def test_prometheus_sees_the_metrics_and_nothing_else(app_of):
    app = app_of(prometheus=True)
    assert status(app, "GET", "/metrics") == 200
    assert status(app, *ANSWER) == status(app, *LORA) == status(app, "GET", "/metrics/../version") == 401


def test_verl_builds_its_application_of_the_arguments_that_ours_changes():
    source = inspect.getsource(vLLMHttpServer.run_server)
    assert "app = build_app(args, **build_app_kwargs)" in source
    assert "run_uvicorn(app, args, self._server_address)" in source
    assert "middleware_of(self.config.prometheus.enable)" in inspect.getsource(sampler.FinishReasonServer.run_server)
