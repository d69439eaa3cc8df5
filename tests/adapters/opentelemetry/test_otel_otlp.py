"""OTLP over HTTP at the gateway: protobuf and JSON, compressed or not, late, twice, and broken."""

from __future__ import annotations

import base64
import gzip
import json
import sys
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from adapter_world import World, tree
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from agentlightning.capture.recorder import Recorder
from agentlightning.errors import StoreError
from agentlightning.gateway.api.otlp import read_spans
from agentlightning.testing.world import problems

TRACE = "a" * 32
PROTOBUF, JSON = "application/x-protobuf", "application/json"


def span(number: int, parent: int | None = None, **attributes: Any) -> dict[str, Any]:
    """A span in OTLP's JSON."""
    keys = [{"key": key.replace("__", "."), "value": {"stringValue": value}} for key, value in attributes.items()]
    return {
        "traceId": TRACE, "spanId": f"{number:016x}", "parentSpanId": "" if parent is None else f"{parent:016x}", "name": f"span {number}",
        "startTimeUnixNano": str(10**9 * number), "endTimeUnixNano": str(10**9 * number + 5), "attributes": keys,
    }  # fmt: skip


def agent(number: int, parent: int | None = None, name: str = "writer") -> dict[str, Any]:
    return span(number, parent, gen_ai__operation__name="invoke_agent", gen_ai__agent__name=name)


def tool(number: int, parent: int | None = None, name: str = "add") -> dict[str, Any]:
    return span(number, parent, gen_ai__operation__name="execute_tool", gen_ai__tool__name=name)


def body(spans: Sequence[dict[str, Any]], kind: str = JSON) -> bytes:
    request = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {"name": "an-agent"}, "spans": list(spans)}]}]}
    if kind == JSON:
        return json.dumps(request).encode()
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    scope.scope.name = "an-agent"
    for fields in spans:
        item = scope.spans.add()
        item.trace_id, item.span_id = bytes.fromhex(fields["traceId"]), bytes.fromhex(fields["spanId"])
        item.parent_span_id, item.name = bytes.fromhex(fields["parentSpanId"]), fields["name"]
        item.start_time_unix_nano, item.end_time_unix_nano = int(fields["startTimeUnixNano"]), int(fields["endTimeUnixNano"])
        for attribute in fields["attributes"]:
            item.attributes.add(key=attribute["key"]).value.string_value = attribute["value"]["stringValue"]
    return message.SerializeToString()


async def post(world: World, key: str, content: bytes, kind: str = JSON, path: str = "traces", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"{world.gateway.base_url}/{path}"
        return await client.post(url, content=content, headers={"content-type": kind, "x-agl-key": key, **headers})


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
@pytest.mark.parametrize("packed", [False, True])
async def test_spans_become_records_of_the_attempt_whose_key_they_have(world: World, kind: str, packed: bool) -> None:
    async with world.rollout() as recorder:
        content = body([tool(3, 2), span(2, 1), agent(1)], kind)
        headers = {"content-encoding": "gzip"} if packed else {}
        answer = await post(world, recorder.attempt.key, gzip.compress(content) if packed else content, kind, **headers)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content == (b"{}" if kind == JSON else b"")
        spans = await world.spans(recorder)
    assert tree(spans) == {"": ["writer"], "writer": ["add"]}
    assert [(span.started, span.ended) for span in spans] == [(1.0, 1.000000005), (3.0, 3.000000005)]


async def test_both_forms_say_the_same() -> None:
    spans = [tool(3, 2), span(2, 1), agent(1)]
    assert read_spans(body(spans, JSON), JSON) == read_spans(body(spans, PROTOBUF), PROTOBUF)


async def test_every_kind_of_value_is_read(world: World) -> None:
    values: dict[str, Any] = {
        "text": {"stringValue": "a"}, "truth": {"boolValue": True}, "whole number": {"intValue": "7"}, "number": {"doubleValue": 0.5},
        "list": {"arrayValue": {"values": [{"stringValue": "a"}, {"intValue": 1}]}},
        "map": {"kvlistValue": {"values": [{"key": "k", "value": {"stringValue": "v"}}]}},
        "bytes": {"bytesValue": base64.b64encode(b"x").decode()}, "nothing": {},
    }  # fmt: skip
    fields = {**span(1), "attributes": [{"key": key, "value": value} for key, value in values.items()]}
    [read], _ = read_spans(body([fields]), JSON)
    assert read.attributes == {
        "text": "a", "truth": True, "whole number": 7, "number": 0.5, "list": ["a", 1], "map": {"k": "v"}, "bytes": "eA==", "nothing": None,
    }  # fmt: skip


async def test_a_failure_and_its_exception_are_read(world: World) -> None:
    event = {"name": "exception", "attributes": [{"key": "exception.message", "value": {"stringValue": "no"}}]}
    for code in (2, "STATUS_CODE_ERROR"):
        async with world.rollout() as recorder:
            await post(world, recorder.attempt.key, body([{**tool(1), "status": {"code": code}, "events": [event]}]))
            [failed] = await world.spans(recorder, "tool")
        assert failed.attributes["error"] == "no"


async def test_a_model_call_joins_the_recorded_call_by_the_id_of_its_answer(world: World) -> None:
    async with world.rollout() as recorder:
        call_id = await ask(recorder)
        call = span(2, 1, gen_ai__operation__name="chat", gen_ai__request__model="m", gen_ai__response__id=f"chatcmpl-{call_id}")
        await post(world, recorder.attempt.key, body([call]))
        await post(world, recorder.attempt.key, body([agent(1)]))
        await world.joined(recorder, 1)
    assert [transition.agent for transition in (await world.trajectory(recorder, agents=["writer"])).transitions] == ["writer"]


async def test_plumbing_that_comes_after_its_children_is_no_span_and_leaves_no_gap(world: World) -> None:
    async with world.rollout() as recorder:
        for batch in ([tool(4, 3)], [span(3, 2)], [span(2, 1)], [agent(1)]):
            await post(world, recorder.attempt.key, body(batch))
        assert tree(await world.spans(recorder)) == {"": ["writer"], "writer": ["add"]}


async def test_a_batch_that_is_sent_again_is_recorded_once(world: World) -> None:
    async with world.rollout() as recorder:
        for _ in range(2):
            assert (await post(world, recorder.attempt.key, body([tool(2, 1), agent(1)]))).status_code == 200
        assert len(await world.spans(recorder)) == 2


async def test_a_batch_that_the_store_does_not_take_is_recorded_when_it_is_sent_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(records: Any) -> None:
        raise StoreError("the disk is full")

    async with world.rollout() as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(world.store, "record", broken)
            refused = await post(world, recorder.attempt.key, body([agent(1)]))
        assert (refused.status_code, "the disk is full" in refused.text) == (503, True)  # senders try again after a 503
        assert (await post(world, recorder.attempt.key, body([agent(1)]))).status_code == 200
        assert [span.name for span in await world.spans(recorder)] == ["writer"]


async def test_spans_after_the_end_of_the_attempt_are_refused_and_change_nothing(world: World) -> None:
    async with world.rollout() as recorder:
        await post(world, recorder.attempt.key, body([tool(2, 1)]))
    late = await post(world, recorder.attempt.key, body([agent(1)]))
    assert (late.status_code, "is closed (succeeded)" in late.text) == (401, True)
    _, records = await world.store.read(recorder.rollout.id)
    assert [span.name for span in records[0].spans] == ["add"]


async def test_spans_without_a_key_are_refused_with_the_ways_to_send_one(world: World) -> None:
    for key in ("", "wrong"):
        answer = await post(world, key, body([agent(1)]))
        assert (answer.status_code, "X-AGL-Key" in answer.text) == (401, True)


async def test_spans_without_an_id_are_counted_in_the_answer_and_the_others_are_recorded(world: World) -> None:
    async with world.rollout() as recorder:
        spans = [agent(1), {**agent(2), "spanId": ""}, {**agent(3), "traceId": "abc"}]
        answer = (await post(world, recorder.attempt.key, body(spans))).json()
        assert answer == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "A span needs an id and a trace id."}}
        spans = [agent(4), {**agent(5), "spanId": ""}]
        told = ExportTraceServiceResponse.FromString((await post(world, recorder.attempt.key, body(spans, PROTOBUF), PROTOBUF)).content)
        assert told.partial_success.rejected_spans == 1
        assert told.partial_success.error_message == "A span needs an id and a trace id."
        assert len(await world.spans(recorder)) == 2


@pytest.mark.parametrize(
    ("content", "headers", "status", "text"),
    [
        (b"{", {}, 400, "not JSON"),
        (b"[]", {}, 400, "not JSON"),
        (b'{"resourceSpans": 7}', {}, 400, "no OTLP trace"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [7]}]}]}', {}, 400, "no OTLP trace"),
        (body([{**agent(1), "startTimeUnixNano": "soon"}]), {}, 400, "no OTLP trace"),
        (b"\xff\xff", {"content-type": PROTOBUF}, 400, "no protobuf"),
        (b"{}", {"content-type": "text/plain"}, 415, "not OTLP"),
        (b"{}", {"content-encoding": "br"}, 415, "Send gzip"),
        (b"{}", {"content-encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(b"{}", mtime=0)[:-9], {"content-encoding": "gzip"}, 400, "in the middle"),
        (gzip.compress(b" " * (33 * 2**20)), {"content-encoding": "gzip"}, 413, "Send smaller batches"),
    ],
)
async def test_a_body_that_is_no_trace_is_refused(world: World, content: bytes, headers: dict[str, str], status: int, text: str) -> None:
    async with world.rollout() as recorder:
        answer = await post(world, recorder.attempt.key, content, **headers)
        assert (answer.status_code, text in answer.text) == (status, True), answer.text
        assert problems(await world.spans(recorder)) == []


async def test_protobuf_without_its_library_says_what_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1.trace_service_pb2", None)
    async with world.rollout() as recorder:
        answer = await post(world, recorder.attempt.key, b"", PROTOBUF)
        assert (answer.status_code, "pip install 'agentlightning[opentelemetry]'" in answer.text) == (415, True)
        assert (await post(world, recorder.attempt.key, body([agent(1)]))).status_code == 200


@pytest.mark.parametrize("path", ["metrics", "logs"])
async def test_metrics_and_logs_are_dropped_and_the_answer_says_so(world: World, path: str) -> None:
    async with world.rollout() as recorder:
        answer = await post(world, recorder.attempt.key, b"{}", path=path)
        assert (answer.status_code, answer.json()["partialSuccess"]["errorMessage"]) == (200, "This gateway keeps traces alone.")
    assert (await post(world, "", b"{}", path=path)).status_code == 401


async def ask(recorder: Recorder) -> str:
    """Ask the model once, and return the id of the call."""
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(
            f"{recorder.llm.base_url}/chat/completions",
            json={"model": recorder.llm.model, "messages": [{"role": "user", "content": "hi"}]},
            headers={"authorization": f"Bearer {recorder.llm.api_key}"},
        )
    return str(answer.json()["system_fingerprint"])
