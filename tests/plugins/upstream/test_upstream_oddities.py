"""Answers of other servers in all their shapes: the agent gets every byte, and the record understands them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from upstream_house import PlainServer

from agentlightning.types import Rollout, Sampling, Task, new_id
from agentlightning_upstream.wire import Reader, ResponseReader, failure
from gateway_house import House, user

ADD, FIND = {"name": "calculator", "arguments": '{"a":1}'}, {"name": "search", "arguments": "{}"}
FIRST, SECOND = {"name": "calculator", "arguments": '{"a":'}, {"name": "calculator", "arguments": "1}"}
REST = {"arguments": "1}"}
CALL, OTHER = {"id": "c1", "type": "function", "function": ADD}, {"id": "c2", "type": "function", "function": FIND}
BOTH = [CALL, OTHER]
NAMELESS = [{**call, "id": ""} for call in BOTH]


def at(index: int | None, function: Any, id: str | None = None) -> dict[str, Any]:
    """A delta of a tool call."""
    return {"index": index, "function": function, **({"id": id} if id else {})}


def chunk(choice: Any, **more: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def tools(*deltas: Any) -> list[dict[str, Any]]:
    """Chunks with these deltas of tool calls, one a chunk."""
    return [
        *(chunk({"index": 0, "delta": {"tool_calls": [delta] if isinstance(delta, dict) else delta}}) for delta in deltas),
        chunk({"index": 0, "delta": {}, "finish_reason": "tool_calls"}),
    ]


def whole(message: Any, reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", **more,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}]}  # fmt: skip


def stream(chunks: list[Any], end: str = "\n\n") -> bytes:
    return b"".join(f"data: {json.dumps(item)}{end}".encode() for item in chunks) + f"data: [DONE]{end}".encode()


async def forwarded(front: House, *, sampling: Sampling | None, path: str = "/chat/completions", **fields: Any) -> tuple[Any, Any, Any]:
    """What the agent got, the call, and its only completion, or none."""
    rollout = Rollout(task=Task(new_id(), None), mode="train" if sampling else "production", sampling=sampling)
    attempt = await front.store.begin(rollout, "test", lease=60)
    async with httpx.AsyncClient(base_url=front.gateway.base_url, headers={"x-api-key": attempt.key}, timeout=60) as client:
        answer = await client.post(path, json={"model": "theirs", "messages": [user("hi")], **fields})
    [call], completions = (records := await front.records(attempt)).calls, records.completions
    return answer, call, completions[0] if completions else None


OBJECT = {"name": "calculator", "arguments": {"a": 1}}
STREAMS: dict[str, tuple[list[Any], list[Any]]] = {
    "a name repeated in each delta with its id": (tools(at(0, FIRST, "c1"), at(0, SECOND, "c1")), [CALL]),
    "a name repeated in each delta without an id": (tools(at(0, FIRST, "c1"), at(0, SECOND)), [CALL]),
    "a name in pieces": (tools(at(0, {"name": "calc"}, "c1"), at(0, {"name": "ulator", "arguments": '{"a":1}'})), [CALL]),
    "deltas without an index": (tools({"id": "c1", "function": ADD}, {"id": "c2", "function": FIND}), BOTH),
    "pieces without an index": (tools({"id": "c1", "function": FIRST}, {"function": REST}), [CALL]),
    "a null index": (tools(at(None, FIRST, "c1"), at(None, REST)), [CALL]),
    "whole calls without index and id": (tools({"function": ADD}, {"function": FIND}), NAMELESS),
    "several in one delta without an index": (tools([{"id": "c1", "function": ADD}, {"id": "c2", "function": FIND}]), BOTH),
    "two ids under one index": (tools(at(0, ADD, "c1"), at(0, FIND, "c2")), BOTH),
    "two calls in turns": (tools(at(0, FIRST, "c1"), at(1, {"name": "search"}, "c2"), at(0, REST), at(1, {"arguments": "{}"})), BOTH),
    "arguments as an object": (tools(at(0, OBJECT, "c1")), [{**CALL, "function": {**OBJECT, "arguments": '{"a": 1}'}}]),
}  # fmt: skip


@pytest.mark.parametrize("sampling", [None, Sampling()])
@pytest.mark.parametrize("name", STREAMS)
async def test_tool_calls_of_a_stream_are_recorded_however_their_deltas_are_named(forward: Any, name: str, sampling: Any) -> None:
    chunks, calls = STREAMS[name]
    front = await forward(PlainServer(answer=lambda body: Response(stream(chunks), media_type="text/event-stream")))
    answer, call, completion = await forwarded(front, sampling=sampling, stream=True)
    assert answer.content == stream(chunks)
    assert (call.status, completion.finish_reason) == ("completed", "tool_calls")
    assert completion.message["tool_calls"] == calls


SAY = {"role": "assistant", "content": "hi"}
PARTS = {"role": "assistant", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
SILENT: dict[str, Any] = {"role": "assistant", "content": None}
BODIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "content as parts": (whole(PARTS), SAY, "stop"),
    "arguments as an object": (
        whole({**SILENT, "tool_calls": [{**CALL, "function": OBJECT}]}, "tool_calls"),
        {**SILENT, "tool_calls": [{**CALL, "function": {**OBJECT, "arguments": '{"a": 1}'}}]},
        "tool_calls",
    ),
    "null usage": (whole(SAY, usage=None), SAY, "stop"),
    "usage that is a list": (whole(SAY, usage=[]), SAY, "stop"),
    "null finish reason": (whole(SAY, None), SAY, "stop"),
    "a finish reason of another vendor": (whole(SAY, "MAX_TOKENS"), SAY, "length"),
    "an unknown finish reason": (whole(SAY, "content_filter"), SAY, "error"),
    "a finish reason that is no text": (whole(SAY, {"a": 1}), SAY, "error"),
    "a refusal": (whole({"role": "assistant", "content": None, "refusal": "no"}), {"role": "assistant", "content": "no"}, "stop"),
    "the older function call": (
        whole({"role": "assistant", "content": None, "function_call": CALL["function"]}, "function_call"),
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": ""}]}, "tool_calls"),
    "no index": ({"choices": [{"message": SAY, "finish_reason": "stop"}]}, SAY, "stop"),
    "tool calls null": (whole({**SAY, "tool_calls": None, "reasoning": None}), SAY, "stop"),
    "null token ids": (whole(SAY, prompt_token_ids=None), SAY, "stop"),
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", BODIES)
async def test_whole_answers_of_odd_shapes_are_recorded_and_pass_on_to_the_byte(forward: Any, name: str, indent: int | None) -> None:
    body, message, finish = BODIES[name]
    data = json.dumps(body, indent=indent).encode()
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="application/json")))
    answer, call, completion = await forwarded(front, sampling=None)
    assert (answer.status_code, answer.content) == (200, data)
    assert (call.status, completion.message, completion.finish_reason) == ("completed", message, finish)


async def test_chunks_without_an_index_are_one_reply(forward: Any) -> None:
    chunks = [chunk({"delta": {"content": letter}}) for letter in "hello"] + [chunk({"delta": {}, "finish_reason": "stop"}, usage=None)]
    front = await forward(PlainServer(answer=lambda body: Response(stream(chunks), media_type="text/event-stream")))
    answer, call, completion = await forwarded(front, sampling=None, stream=True)
    assert answer.content == stream(chunks)
    assert (call.status, call.choices, completion.message["content"], completion.finish_reason) == ("completed", 1, "hello", "stop")


async def test_a_stream_without_finish_reasons_ends_with_its_done(forward: Any) -> None:
    data = stream([chunk({"index": 0, "delta": {"content": "hi"}})], "\r\n\r\n")
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="text/event-stream")))
    answer, call, completion = await forwarded(front, sampling=None, stream=True)
    assert (answer.content, call.status, completion.finish_reason) == (data, "completed", "stop")


@pytest.mark.parametrize(
    ("body", "text"),
    [({"error": {"message": "out of memory"}}, "out of memory"), ({"error": "overloaded"}, "overloaded"),
     ({"object": "error", "message": "no such model"}, "no such model"), ({"detail": "Not ready"}, "Not ready"),
     ({"choices": [], "error": {"message": "no credit", "code": 402}}, "no credit"), ({"error": {"code": 5}}, '{"code":5}'),
     ({"id": "x"}, "holds no reply"), ({"choices": None}, "holds no reply"), ([1], "holds no reply")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
async def test_a_200_that_is_an_error_passes_on_and_is_recorded_as_one_with_its_text(forward: Any, body: Any, text: str, path: str) -> None:
    data = json.dumps(body).encode()
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="application/json")))
    answer, call, completion = await forwarded(front, sampling=None, path=path)
    assert (answer.status_code, answer.content, call.status, completion) == (200, data, "error", None)
    assert text in call.detail


@pytest.mark.parametrize("data", [b"<html>Sorry</html>", b"", b"\xff\xfe", b"[" * 3000])
async def test_a_200_that_is_no_json_passes_on_with_its_type_and_is_recorded_as_an_error(forward: Any, data: bytes) -> None:
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="text/html")))
    answer, call, _ = await forwarded(front, sampling=None)
    assert (answer.status_code, answer.content, call.status) == (200, data, "error")
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("data", [b"", b": nothing\n\n", b'data: {"error": "busy"}\n\n', b"data: [DONE]\n\n", b'data: {"cho'])
async def test_a_stream_without_a_reply_is_a_200_that_is_recorded_as_an_error(forward: Any, data: bytes) -> None:
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="text/event-stream")))
    answer, call, _ = await forwarded(front, sampling=None, stream=True)
    assert (answer.status_code, call.status) == (200, "error")
    assert answer.content.startswith(data)
    assert "busy" not in data.decode() or answer.content == data


async def test_only_what_the_record_asked_for_is_taken_out_of_an_answer(forward: Any) -> None:
    data = b'{"n": 1.00, "choices": [{"message": {"content": "h\\u0069", "x": 1e2}, "token_ids": [5], "logprobs": {"content": []},'
    data += b'"finish_reason": "stop", "index": 0}], "prompt_token_ids": [1, 2]}'
    front = await forward(PlainServer(answer=lambda body: Response(data, media_type="application/json")))
    answer, _, completion = await forwarded(front, sampling=None)
    assert (completion.prompt_ids.tolist(), completion.response_ids.tolist()) == ([1, 2], [5])
    assert answer.content == (
        b'{"n":1.00,"choices":[{"message":{"content": "h\\u0069", "x": 1e2},"logprobs":{"content": []},"finish_reason":"stop","index":0}]}'
    )
    answer, _, _ = await forwarded(front, sampling=None, return_token_ids=True)
    assert answer.content == data
    answer, _, _ = await forwarded(front, sampling=Sampling())
    assert answer.json()["choices"][0]["logprobs"] is None


names = st.sampled_from(["choices", "message", "delta", "content", "tool_calls", "function", "name", "arguments", "id", "index", "usage",
                         "completion_tokens", "finish_reason", "logprobs", "token_ids", "prompt_token_ids", "token_logprobs", "logprob",
                         "error", "type", "object", "response", "output", "status", "text", "refusal", "function_call"])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=3) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(names, values, max_size=5), max_size=3), st.booleans())
def test_no_answer_of_any_shape_is_an_error_of_the_reader(answers: list[dict[str, Any]], chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    for reader in (Reader(path, 1, hidden=("token_ids", "logprobs")), ResponseReader()):
        for answer in answers:
            reader.take(answer)
            failure(answer)
        reader.close()
        for choice in reader.choices.values():
            assert choice.message()["role"] == "assistant"
