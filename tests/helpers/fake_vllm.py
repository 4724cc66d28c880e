"""A server on loopback that answers as vLLM 0.28 was seen to, and can misbehave on request."""

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from fake_sglang import FakeSGLang, logprob_of

MOST = 20
"""vLLM's `--max-logprobs` where nobody sets it."""


@dataclass
class FakeVLLM(FakeSGLang):
    """Answers `/v1/completions`; the rest as FakeSGLang does."""

    info: dict[str, Any] = field(
        default_factory=lambda: {
            "object": "list",
            "data": [{"id": "teacher", "object": "model", "root": "/models/teacher", "parent": None}],
        }
    )
    """What `/v1/models` says; empty: no such question."""

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/completions", self.generate),
            web.post("/tokenize", self.tokens),
            web.get("/v1/models", self.tell),
            web.get("/version", self.version),
        ]

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": "0.28.0"}) if self.info else web.Response(status=404)

    async def tokens(self, request: web.Request) -> web.Response:
        if self.tokenize is None:
            return web.Response(status=500)
        ids = self.tokenize((await request.json())["prompt"])
        return web.json_response({"count": len(ids), "max_model_len": 4096, "tokens": ids, "token_strs": None})

    def place(self, ids: list[int], position: int, top_k: int) -> dict[str, Any]:
        """The token that was sent first, far behind the most likely ones unless it is one of them."""
        sent = ids[position]
        likely = {str(token): entry(-1.0 - token, token + 1) for token in range(top_k) if token != sent}
        rank = sent + 1 if sent < top_k else 40
        return {str(sent): entry(logprob_of(ids, position) - self.model, rank)} | likely

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        if (top_k := body["prompt_logprobs"]) > MOST:
            message = f"Requested prompt logprobs of {top_k}, which is greater than max allowed: {MOST}"
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        if any(self.refuses in ids for ids in body["prompt"]):
            return web.json_response({"error": {"message": "Token id is out of vocabulary", "code": 400}}, status=400)
        choices = [
            {
                "index": index,
                "text": "ot",
                "finish_reason": "length",
                "prompt_logprobs": [None, *(self.place(ids, i, top_k) for i in range(1, len(ids)))],
                "prompt_token_ids": None,
            }
            for index, ids in enumerate(body["prompt"])
        ]
        if self.faults and isinstance(outcome := self.faults.pop(0)(request, choices[0]), web.StreamResponse):
            return outcome
        return web.json_response({"id": "cmpl-1", "choices": choices, "usage": {"prompt_tokens": 7}})


def entry(logprob: float, rank: int) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": "ot"}
