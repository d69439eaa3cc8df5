"""Clients other than `openai`: each goes to the gateway of its rollout, and its answer names its call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from weakref import ref

import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
from starlette.requests import Request

import agentlightning as agl
from agentlightning.capture.clients import clients
from agentlightning.capture.http_patch import OWN_CLIENT
from agentlightning.capture.model_call import ModelCall
from agentlightning.errors import RoutingError
from agentlightning.testing.world import World

QUESTION: Any = [{"role": "user", "content": "question"}]
MESSAGES = "https://api.anthropic.com/v1/messages"
BODY: Any = {"model": "famous", "max_tokens": 50, "messages": QUESTION}
KEY = {"x-api-key": "the vendor's key"}
SYNC = anthropic.Anthropic(api_key="the vendor's key", max_retries=0)
ASYNC = anthropic.AsyncAnthropic(api_key="the vendor's key", max_retries=0)


def anthropic_plain() -> Any:
    return SYNC.messages.create(**BODY).id


def anthropic_streamed() -> Any:
    with SYNC.messages.stream(**BODY) as stream:
        return stream.get_final_message().id


async def anthropic_async() -> Any:
    return (await ASYNC.messages.create(**BODY)).id


async def anthropic_async_streamed() -> Any:
    async with ASYNC.messages.stream(**BODY) as stream:
        return (await stream.get_final_message()).id


def httpx_plain() -> Any:
    return httpx.post(MESSAGES, json=BODY, headers=KEY).json()["id"]


def httpx_with_auth() -> Any:
    with httpx.Client(auth=("user", "password")) as client:
        return client.post("https://api.groq.com/openai/v1/chat/completions", content=json.dumps(BODY)).json()["id"]


async def httpx_async() -> Any:
    async with httpx.AsyncClient(base_url="https://openrouter.ai/api/v1") as client:
        return (await client.post("/responses", json={"model": "famous", "input": "question"})).json()["id"]


def httpx2_plain() -> Any:
    return httpx2.post(MESSAGES, json=BODY, headers=KEY).json()["id"]


def requests_plain() -> Any:
    return requests.post(MESSAGES, json=BODY, headers=KEY, timeout=20).json()["id"]


def requests_text() -> Any:
    with requests.Session() as session:
        session.auth = ("user", "password")
        answer = session.post("https://api.deepseek.com/chat/completions", data=json.dumps(BODY), params={"a": "1"}, timeout=20)
        return answer.json()["id"]


async def aiohttp_plain() -> Any:
    aiohttp: Any = import_module("aiohttp")
    async with aiohttp.ClientSession(headers=KEY) as session, session.post(MESSAGES, json=BODY) as answer:
        return (await answer.json())["id"]


async def aiohttp_bytes() -> Any:
    aiohttp: Any = import_module("aiohttp")
    async with aiohttp.ClientSession("https://api.mistral.ai") as session:
        answer = await session.post("/v1/chat/completions", data=json.dumps(BODY).encode(), headers={"Authorization": "Bearer vendor"})
        return (await answer.json())["id"]


def litellm_plain() -> Any:
    litellm: Any = import_module("litellm")
    return litellm.completion("anthropic/famous", messages=QUESTION, max_tokens=50, api_key="vendor", num_retries=0).id


async def litellm_async() -> Any:
    litellm: Any = import_module("litellm")
    answer = await litellm.acompletion("openrouter/famous", messages=QUESTION, max_tokens=50, api_key="vendor", num_retries=0)
    return answer.id


def langchain_anthropic() -> Any:
    library: Any = import_module("langchain_anthropic")
    return library.ChatAnthropic(model_name="famous", api_key="vendor").invoke("question").response_metadata["id"]


def needs(library: str) -> Any:
    try:
        missing = find_spec(library) is None
    except ModuleNotFoundError:  # not even the package above it
        missing = True
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


CALLS = [
    anthropic_plain,
    anthropic_streamed,
    anthropic_async,
    anthropic_async_streamed,
    httpx_plain,
    httpx_with_auth,
    httpx_async,
    httpx2_plain,
    requests_plain,
    requests_text,
    pytest.param(aiohttp_plain, marks=needs("aiohttp")),
    pytest.param(aiohttp_bytes, marks=needs("aiohttp")),
    pytest.param(litellm_plain, marks=needs("litellm")),
    pytest.param(litellm_async, marks=needs("litellm")),
    pytest.param(langchain_anthropic, marks=needs("langchain_anthropic")),
]


async def run(call: Callable[[], Any]) -> Any:
    answer = call() if asyncio.iscoroutinefunction(call) else asyncio.to_thread(call)
    return await answer


@pytest.mark.parametrize("call", CALLS)
async def test_a_request_for_a_routed_model_is_recorded_and_its_answer_names_its_call(world: World, routed: None, call: Any) -> None:
    async def rollout(number: int) -> None:
        async with world.rollout(number) as recorder:
            framework_call = ModelCall("adapter", ref(recorder))
            with framework_call.here():
                answer_id = await run(call)
            assert len(framework_call.sent) == 1
            call_id, cause = framework_call.end(answer_id)
            assert cause is None
            [recorded] = (await world.records(recorder)).calls
            assert (recorded.id, recorded.status) == (call_id, "completed")

    await asyncio.gather(*(rollout(number) for number in range(8)))


@pytest.fixture
async def vendor() -> AsyncIterator[tuple[str, list[tuple[dict[str, str], Any]]]]:
    """Another vendor's address, and the headers and bodies that it saw."""
    seen: list[tuple[dict[str, str], Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        seen.append((dict(request.headers), await request.json()))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b'{"id": "vendor"}'})

    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", seen
    server.should_exit = True
    await serving


async def test_another_model_keeps_its_address_and_key_and_its_call_says_so(world: World, routed: None, vendor: Any) -> None:
    address, seen = vendor
    body = {**BODY, "model": "judge"}
    async with world.rollout() as recorder:
        call = ModelCall("agentlightning_langchain", ref(recorder))
        with call.here():
            await asyncio.to_thread(httpx.post, f"{address}/v1/messages", json=body, headers=KEY)
            await asyncio.to_thread(requests.post, f"{address}/v1/messages", json=body, headers=KEY)
        assert (await world.records(recorder)).calls == ()
    assert call.end()[1] == (
        f"another address: the request went to {address.removeprefix('http://')} for model 'judge', not to the rollout's gateway; if that "
        "model stands for the one in training: agentlightning_langchain.install(models=['judge'])"
    )
    assert [(headers["x-api-key"], sent) for headers, sent in seen] == [(KEY["x-api-key"], body)] * 2
    assert recorder.attempt.key not in str(seen)


async def test_what_is_no_model_request_keeps_its_address(world: World, routed: None, vendor: Any) -> None:
    address, seen = vendor
    async with world.rollout():
        for path, body in (
            ("/v1/messages", {"model": "famous", "text": "a message of a chat program"}),
            ("/v1/embeddings", {"model": "famous", "input": "text"}),
            ("/anything", BODY),
            ("/v1/messages", []),
        ):
            await asyncio.to_thread(httpx.post, address + path, json=body)
    assert len(seen) == 4


async def test_the_vendors_keys_do_not_reach_the_gateway(world: World, routed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    async with world.rollout() as recorder:
        with httpx.Client(transport=httpx.MockTransport(answer), auth=("user", "vendor")) as client:
            client.post(MESSAGES, json=BODY, headers={"X-Api-Key": "vendor", "api-key": "vendor", "anthropic-version": "2023-06-01"})
    [request] = seen
    assert "vendor" not in str(dict(request.headers))
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["authorization"] == f"Bearer {recorder.attempt.key}"
    assert json.loads(request.content)["model"] == recorder.llm.model
    assert int(request.headers["content-length"]) == len(request.content)


async def test_a_retry_of_the_sdk_is_the_same_request(world: World, routed: None) -> None:
    answers = [httpx2.Response(500), httpx2.Response(200, json={"id": "x", "type": "message", "content": [], "usage": {}})]
    transport = httpx2.MockTransport(lambda request: answers.pop(0))
    async with world.rollout() as recorder:
        call = ModelCall("adapter", ref(recorder))
        with call.here():
            client = anthropic.Anthropic(api_key="k", max_retries=1, http_client=httpx2.Client(transport=transport))
            await asyncio.to_thread(client.messages.create, **BODY)
    (first, _), (second, last) = call.sent
    assert first == second
    assert call.end() == (last, None)


async def test_the_openai_library_is_routed_once(world: World, routed: None) -> None:
    async with world.rollout() as recorder:
        call = ModelCall("adapter", ref(recorder))
        with call.here():
            client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0)
            await asyncio.to_thread(client.chat.completions.create, model="famous", messages=QUESTION)
        assert len(call.sent) == 1
        assert len((await world.records(recorder)).calls) == 1


# --- errors -----------------------------------------------------------------------------------------------------------------------------


def ollama_chat() -> None:
    ollama: Any = import_module("ollama")
    ollama.Client("http://127.0.0.1:9").chat("famous", messages=QUESTION)


def gemini() -> None:
    genai: Any = import_module("google.genai")
    genai.Client(api_key="k").models.generate_content(model="famous", contents="question")


async def gemini_async() -> None:
    genai: Any = import_module("google.genai")
    await genai.Client(api_key="k").aio.models.generate_content(model="famous", contents="question")


def bedrock() -> None:
    botocore: Any = import_module("botocore.session")
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = botocore.Session().create_client("bedrock-runtime", region_name="us-east-1", **keys)
    client.converse(modelId="famous", messages=[{"role": "user", "content": [{"text": "question"}]}])


def cohere() -> None:
    requests.post("https://api.cohere.com/v2/chat", json=BODY, timeout=20)


def vertex() -> None:
    path = "/v1/projects/p/locations/l/publishers/anthropic/models/famous@20250101:streamRawPredict"
    httpx.post("https://us-east5-aiplatform.googleapis.com" + path, json={"messages": QUESTION})


@pytest.mark.parametrize(
    ("call", "name", "way_out"),
    [
        pytest.param(ollama_chat, "Ollama's own API", "base URL, which ends in /v1", marks=needs("ollama")),
        pytest.param(gemini, "Gemini's generateContent", "v1beta/openai", marks=needs("google.genai")),
        pytest.param(
            gemini_async,
            "Gemini's generateContent",
            "v1beta/openai",
            marks=needs("google.genai"),
        ),
        pytest.param(bedrock, "Amazon Bedrock's API", "OpenAI or Anthropic client", marks=needs("botocore")),
        (cohere, "Cohere's own API", "compatibility"),
        (vertex, "Vertex AI's rawPredict", "Anthropic's own client"),
    ],
)
async def test_a_form_that_the_gateway_does_not_speak_is_an_error_with_its_name(
    world: World, routed: None, call: Any, name: str, way_out: str
) -> None:
    async with world.rollout():
        with pytest.raises(RoutingError) as error:
            await run(call)
    assert str(error.value).startswith(f"{name} cannot be recorded, and model 'famous' stands for the model of the rollout.")
    assert way_out in str(error.value)
    assert "`models`" in str(error.value)


@pytest.mark.parametrize(
    "call", [httpx_plain, httpx_async, httpx2_plain, requests_plain, pytest.param(aiohttp_plain, marks=needs("aiohttp"))]
)
async def test_a_request_outside_every_rollout_is_an_error(world: World, routed: None, call: Any) -> None:
    async with world.rollout() as recorder:
        with pytest.raises(RoutingError, match=r"agl\.attach"):
            await asyncio.create_task(run(call), context=Context())
        assert (await world.records(recorder)).calls == ()


async def test_the_sdk_of_anthropic_shows_the_error_and_does_not_try_again(world: World, routed: None) -> None:
    patient = anthropic.Anthropic(api_key="k", max_retries=2)
    async with world.rollout():
        with pytest.raises(anthropic.BadRequestError, match=r"agl\.attach"):
            await asyncio.to_thread(Context().run, lambda: patient.messages.create(**BODY))
        with pytest.raises(anthropic.BadRequestError, match=r"agl\.attach"):
            await asyncio.create_task(ASYNC.messages.create(**BODY), context=Context())


async def test_a_client_of_ours_belongs_to_no_rollout(world: World, routed: None, vendor: Any) -> None:
    address, seen = vendor
    async with world.rollout(), httpx.AsyncClient() as client:
        setattr(client, OWN_CLIENT, True)
        await client.post(f"{address}/v1/messages", json=BODY)
    assert len(seen) == 1


async def test_detached_requests_go_where_they_say(world: World, routed: None, vendor: Any) -> None:
    address, seen = vendor
    async with world.rollout():
        with agl.attach(None):
            await asyncio.to_thread(requests.post, f"{address}/v1/messages", json=BODY)
    [(headers, body)] = seen
    assert body == BODY
    assert not [name for name in headers if name.startswith("x-agl")]


def test_uninstalling_leaves_every_library_as_it_was(no_adapter: None) -> None:
    def methods() -> list[Any]:
        return [httpx.Client.send, httpx.AsyncClient.send, httpx2.Client.send, httpx2.AsyncClient.send, requests.Session.send]

    before = methods()
    clients().install("one")
    clients().install("two")
    patched = methods()
    clients().install("two", ["famous"])
    assert methods() == patched
    assert not set(map(id, patched)) & set(map(id, before))
    clients().uninstall("one")
    assert methods() == patched
    clients().uninstall("two")
    assert methods() == before
