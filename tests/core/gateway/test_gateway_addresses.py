"""Base addresses with and without /v1, and the answer to a path that nobody serves."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest
from tests.gateway_house import House

from agentlightning.gateway import Gateway
from agentlightning.telemetry.store_app import store_app

HI: Any = [{"role": "user", "content": "hi"}]
BODIES = {
    "/chat/completions": {"messages": HI},
    "/responses": {"input": "hi"},
    "/completions": {"prompt": "hi"},
    "/messages": {"messages": HI, "max_tokens": 9},
    "/messages/count_tokens": {"messages": HI},
}


def root(h: House) -> str:
    return h.gateway.base_url.removesuffix("/v1")


@pytest.mark.parametrize("base", ["", "/v1", "/v1/v1"])
async def test_every_form_is_served_with_and_without_v1(house: Any, base: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    async with httpx.AsyncClient(base_url=root(h) + base, headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        for path, body in BODIES.items():
            assert (await client.post(path, json={"model": "scripted", **body})).status_code == 200
        assert (await client.post("/reward", json=1)).status_code == 200
        assert (await client.get("/models")).json()["data"][0]["id"] == "scripted"
        assert (await client.get("/models/scripted")).json()["id"] == "scripted"
    assert [call.status for call in (await h.records(attempt)).calls] == ["completed"] * 4


async def test_the_official_clients_work_on_any_base_address(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    for base in (root(h), h.gateway.base_url):
        async with anthropic.AsyncAnthropic(base_url=base, api_key=attempt.key, max_retries=0) as client:
            assert (await client.messages.create(model="scripted", max_tokens=9, messages=HI)).content[0].text == "hello"
        async with openai.AsyncOpenAI(base_url=base, api_key=attempt.key, max_retries=0) as client:
            assert (await client.responses.create(model="scripted", input="hi")).output_text == "hello"


@pytest.mark.parametrize("with_store", [False, True])
async def test_an_unknown_path_names_what_is_served_and_counts_as_refused(house: Any, with_store: bool) -> None:
    h = await house(lambda prompt, sampling: "hello")
    if with_store:  # as `agl serve` does
        await h.gateway.stop()
        h.gateway = Gateway(h.store, h.engine, token="secret", extra_routes=store_app(h.store, "secret").routes)
        await h.gateway.start()
        h._stack.push_async_callback(h.gateway.stop)
    attempt = await h.attempt()
    async with httpx.AsyncClient(base_url=root(h)) as client:
        for method, path, status in (("POST", "/v1/embeddings", 404), ("GET", "/v1/messages", 405), ("POST", "/", 404)):
            for key in (attempt.key, "secret", "nobody's"):
                answer = await client.request(method, path, json={}, headers={"x-api-key": key})
                assert answer.status_code == status
                error = answer.json()["error"]
                assert error["message"].startswith(f"This gateway does not serve {method} {path}. Use POST /v1/chat/completions, ")
                assert error["code"] == "unknown_url"
    calls = (await h.records(attempt)).calls
    assert [(call.status, call.index) for call in calls] == [("refused", 0), ("refused", 1), ("refused", 2)]
    assert calls[0].detail.startswith("This gateway does not serve POST /v1/embeddings.")


async def test_an_unknown_path_after_the_end_of_an_attempt_adds_nothing_to_it(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    await h.store.finish(attempt.id, "succeeded")
    async with httpx.AsyncClient(base_url=root(h), headers={"x-api-key": attempt.key}) as client:
        assert (await client.post("/v1/embeddings", json={})).status_code == 404
    assert not (await h.records(attempt)).calls
