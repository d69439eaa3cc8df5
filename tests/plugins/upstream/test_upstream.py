"""The forward mode: our own gateway as the upstream of a second one, and a plain server that knows no token ids."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from msgspec.structs import replace
from starlette.responses import JSONResponse, StreamingResponse
from upstream_house import KEY, Forwarding, PlainServer

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.errors import ConfigError, UnsupportedSetting
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.stores.messages import messages_of, tools_of
from agentlightning.types import Attempt, Rollout, Sampling, Task, new_id
from agentlightning_upstream.engine import Upstream, UpstreamSettings
from agentlightning_upstream.sse import event_value, events
from gateway_house import CALCULATOR, House, eventually, slowly, user

HI = [user("hi")]


@pytest.fixture
async def ours(house: Any, forward: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ours(script)`: a gateway of ours with a scripted engine, and one that forwards to it."""

    async def make(script: Any, **engine: Any) -> tuple[House, Forwarding]:
        behind = await house(script, options={"token": KEY}, **engine)
        return behind, await forward(behind.gateway.base_url, model="scripted")

    return make


async def read(front: House, attempt: Attempt) -> Any:
    await front.store.finish(attempt.id, "succeeded")
    state, records = await front.store.read(attempt.rollout_id)
    return trajectory(state, records)


async def behind_records(behind: House) -> list[Any]:
    states, _ = await behind.store.list(mode="production")
    return [(await behind.store.records(state.attempts[0].id)).completions for state in states]


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_of_an_upstream_are_recorded_exactly_and_are_not_shown(ours: Any, stream: bool) -> None:
    behind, front = await ours(lambda prompt, sampling: "Wörk it.\nCALL calculator(3+4)", chunk=3)
    attempt = await front.attempt(Sampling(max_tokens=90))
    client = front.client(attempt)
    answer = await client.chat.completions.create(model="scripted", messages=HI, tools=[CALCULATOR], stream=stream)
    if stream:
        chunks = [chunk async for chunk in answer]
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        [call] = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
        finish, prints = chunks[-1].choices[0].finish_reason, {c.system_fingerprint for c in chunks}
        shown = [c.model_dump_json() for c in chunks]
    else:
        [choice], prints = answer.choices, {answer.system_fingerprint}
        text, [call], finish = choice.message.content, choice.message.tool_calls, choice.finish_reason
        shown = [answer.model_dump_json()]
    assert (text, call.function.name, finish) == ("Wörk it.", "calculator", "tool_calls")
    assert not any("token_ids" in each or 'logprob":' in each for each in shown)
    [record], [completion] = (records := await front.records(attempt)).calls, records.completions
    assert prints == {record.id}
    assert (record.status, record.choices, record.context) == ("completed", 1, "upstream")
    [[exact]] = await behind_records(behind)
    assert completion.prompt_ids.tolist() == exact.prompt_ids.tolist()
    assert completion.response_ids.tolist() == exact.response_ids.tolist()
    assert completion.logprobs == pytest.approx(exact.logprobs)
    assert set(completion.versions.tolist()) == {-1}
    assert completion.missing is None
    assert completion.message["tool_calls"][0]["function"] == exact.message["tool_calls"][0]["function"]
    read_back = await read(front, attempt)
    [transition] = read_back.transitions
    assert transition.trained
    assert read_back.calls == {"completed": 1}


async def test_a_second_turn_is_known_to_continue_the_first_where_its_tokens_do(ours: Any) -> None:
    _, front = await ours(["one", "two"])
    attempt = await front.attempt()
    client = front.client(attempt)
    first = await client.chat.completions.create(model="scripted", messages=HI)
    reply = first.choices[0].message.model_dump(exclude_none=True)
    await client.chat.completions.create(model="scripted", messages=[*HI, reply, user("b")])
    one, two = (await front.records(attempt)).completions
    sampled = [*one.prompt_ids, *one.response_ids]
    # the upstream takes each call for a rollout of its own, so it renders afresh; here that gives the same tokens
    assert list(two.prompt_ids[: len(sampled)]) == sampled
    assert two.continues == one.id
    assert make_batch([await read(front, attempt)], [np.ones(2)]).trained_tokens == len(one.response_ids) + len(two.response_ids)


async def test_the_rollout_decides_the_sampling(ours: Any) -> None:
    behind, front = await ours(lambda prompt, sampling: "hello")
    attempt = await front.attempt(Sampling(temperature=1.0, max_tokens=7, stop=("END",)))
    await front.client(attempt).chat.completions.create(
        model="scripted", messages=HI, temperature=0.2, top_p=0.3, presence_penalty=1, max_completion_tokens=50, stop=["X"], seed=3
    )
    [[exact]] = await behind_records(behind)
    [completion] = (await front.records(attempt)).completions
    s = exact.sampling
    assert (s.temperature, s.top_p, s.max_tokens, s.stop) == (1.0, 1.0, 7, ("X", "END"))
    assert (completion.sampling.temperature, completion.sampling.seed, completion.sampling.stop) == (1.0, s.seed, ("X", "END"))
    assert s.seed != 3


@pytest.mark.parametrize("change", ["temperature", "tool_choice", "response_format"])
async def test_logprobs_that_may_not_be_those_of_the_policy_are_missing_by_name(ours: Any, change: str) -> None:
    _, front = await ours(lambda prompt, sampling: '{"a": 1}')
    attempt = await front.attempt(Sampling(temperature=0.7 if change == "temperature" else 1.0))
    more: dict[str, Any] = {
        "temperature": {},
        "tool_choice": {"tools": [CALCULATOR], "tool_choice": "required"},
        "response_format": {"response_format": {"type": "json_object"}},
    }[change]
    await front.client(attempt).chat.completions.create(model="scripted", messages=HI, **more)
    [completion] = (await front.records(attempt)).completions
    assert completion.logprobs is None
    assert len(completion.response_ids)
    assert change in completion.missing
    [transition] = (await read(front, attempt)).transitions
    assert (transition.trained, transition.reason) == (False, completion.missing)


async def test_n_choices_are_n_completions(ours: Any) -> None:
    behind, front = await ours(["one", "two", "three"])
    attempt = await front.attempt()
    answer = await front.client(attempt).chat.completions.create(model="scripted", messages=HI, n=3)
    [call], completions = (records := await front.records(attempt)).calls, records.completions
    assert call.choices == 3
    assert [c.message["content"] for c in completions] == [c.message.content for c in answer.choices]
    [exact] = await behind_records(behind)
    assert [c.response_ids.tolist() for c in completions] == [c.response_ids.tolist() for c in exact]


async def test_what_the_agent_asks_of_logprobs_and_ids_it_gets(ours: Any) -> None:
    _, front = await ours(lambda prompt, sampling: "hey")
    attempt = await front.attempt()
    extra = {"return_token_ids": True}
    answer = await front.client(attempt).chat.completions.create(model="scripted", messages=HI, logprobs=True, extra_body=extra)
    [completion] = (await front.records(attempt)).completions
    assert answer.choices[0].model_extra["token_ids"] == completion.response_ids.tolist()
    assert answer.model_extra["prompt_token_ids"] == completion.prompt_ids.tolist()
    assert [t.logprob for t in answer.choices[0].logprobs.content] == pytest.approx(completion.logprobs)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_without_token_ids_is_recorded_with_its_message_and_not_trained(forward: Any, stream: bool) -> None:
    server = PlainServer("hé llo\u2028\u0085!")  # line breaks of Unicode break no event
    front = await forward(server)
    attempt = await front.attempt(Sampling())
    raw = await front.client(attempt).chat.completions.with_raw_response.create(
        model="theirs", messages=HI, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {})
    )
    answer = raw.parse()
    if stream:
        chunks = [chunk async for chunk in answer]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert chunks[-1].usage.total_tokens == 5
    else:
        text = answer.choices[0].message.content
    assert text == server.reply
    [call], [completion] = (records := await front.records(attempt)).calls, records.completions
    assert raw.headers[CALL_HEADER] == call.id
    assert (len(completion.prompt_ids), len(completion.response_ids), completion.logprobs) == (0, 0, None)
    assert completion.message == {"role": "assistant", "content": server.reply}
    assert completion.missing == "token ids missing: the upstream returned none"
    result = await read(front, attempt)
    [transition] = result.transitions
    assert (transition.trained, transition.reason) == (False, completion.missing)
    assert "not trained, token ids missing: the upstream returned none: transition 0" in result.diagnostics
    assert result.calls == {"completed": 1}
    assert make_batch([result], [np.ones(1)]).trained_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_happens_to_hold_the_key_reaches_the_agent_as_it_is(forward: Any, stream: bool) -> None:
    front = await forward(PlainServer(f"the {KEY} of it"))
    answer = await front.client(await front.attempt()).chat.completions.create(model="theirs", messages=HI, stream=stream)
    if stream:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])
    else:
        text = answer.choices[0].message.content
    assert text == f"the {KEY} of it"


async def test_the_keys_stay_where_they_belong(forward: Any) -> None:
    def refuse(body: dict[str, Any]) -> Any:
        return JSONResponse({"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}, 401)

    server = PlainServer(answer=refuse)
    front = await forward(server)
    attempt = await front.attempt()
    with pytest.raises(openai.AuthenticationError, match="UPSTREAM_KEY") as error:
        await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    assert error.value.code == "invalid_api_key"
    assert KEY not in str(error.value)
    [call] = (await front.records(attempt)).calls
    assert call.status == "error"  # the agent cannot help it
    assert KEY not in repr(call)
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert attempt.key not in repr(server.headers) + repr(server.bodies)
    open_one = await forward(PlainServer(), key_env=None)
    await open_one.client(attempt_two := await open_one.attempt()).chat.completions.create(model="theirs", messages=HI)
    assert [c.status for c in (await open_one.records(attempt_two)).calls] == ["completed"]


async def test_a_server_that_refuses_what_is_added_is_asked_without_it_and_remembered(
    forward: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = PlainServer(strict=True)
    front = await forward(server)
    attempt = await front.attempt()
    for _ in range(2):
        await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    sizes = [("return_token_ids" in body, "logprobs" in body, "top_k" in body) for body in server.bodies]
    assert sizes == [(True, True, True), (True, True, False), (False, True, False), (False, True, False)]
    assert [c.status for c in (await front.records(attempt)).calls] == ["completed"] * 2
    assert sum("return_token_ids" in r.getMessage() for r in caplog.records) == 1


async def test_logprobs_are_missing_where_the_upstream_does_not_take_the_whole_sampling(forward: Any) -> None:
    def answer(body: dict[str, Any]) -> Any:
        if "top_k" in body:
            return JSONResponse({"error": {"message": "top_k?"}}, 422)
        scores = {"content": [{"token": "x", "logprob": -0.5}, {"token": "", "logprob": -0.1}]}
        message = {"role": "assistant", "content": "x"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "token_ids": [7, 2], "logprobs": scores}
        return JSONResponse({"id": "a", "object": "chat.completion", "model": "m", "choices": [choice], "prompt_token_ids": [1, 5]})

    front = await forward(PlainServer(answer=answer))
    attempt = await front.attempt()
    await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    [completion] = (await front.records(attempt)).completions
    assert (completion.prompt_ids.tolist(), completion.response_ids.tolist(), completion.logprobs) == ([1, 5], [7, 2], None)
    assert "its own defaults may apply" in (completion.missing or "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs": {"content": [{"token": "x", "logprob": -0.5}]}}, "no logprobs: the upstream returned 1 for 2 tokens"),
        ({"token_ids": [7]}, "token ids missing: the upstream counted 2 tokens and returned 1 ids"),
        ({"token_ids": None}, "token ids missing: the upstream returned none"),
    ],
)
async def test_counts_that_do_not_agree_are_missing_and_never_guessed(forward: Any, change: dict[str, Any], said: str) -> None:
    scores = {"content": [{"token": "x", "logprob": -0.5}, {"token": "", "logprob": -0.1}]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "x"},
        "finish_reason": "stop",
        "token_ids": [7, 2],
        "logprobs": scores,
    }
    body = {"id": "a", "model": "m", "choices": [{**choice, **change}], "prompt_token_ids": [1], "usage": {"completion_tokens": 2}}
    front = await forward(PlainServer(answer=lambda asked: JSONResponse(body)))
    attempt = await front.attempt()
    await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    [completion] = (await front.records(attempt)).completions
    assert (completion.missing, completion.logprobs) == (said, None)
    assert len(completion.response_ids) == (0 if said.startswith("token ids") else 2)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_are_read_however_their_bytes_are_cut(size: int) -> None:
    data = 'data: {"a": "é\u2028"}\r\n\r\n: comment\n\nevent: x\ndata: {"b":\ndata: 2}\n\ndata: [DONE]'.encode()

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    read = [raw async for raw in events(parts())]
    assert [event_value(raw) for raw in read] == [{"a": "é\u2028"}, None, {"b": 2}, None]
    assert b"".join(read) == data


async def test_an_error_of_the_agents_own_passes_on_in_the_upstreams_words(forward: Any) -> None:
    error = {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
    server = PlainServer(answer=lambda body: JSONResponse({"error": error}, 400))
    front = await forward(server)
    attempt = await front.attempt()
    with pytest.raises(openai.BadRequestError, match="too long") as raised:
        await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")
    [call] = (await front.records(attempt)).calls
    assert (call.status, call.choices) == ("refused", 0)
    assert "too long" in (call.detail or "")


async def test_too_many_requests_pass_on_with_their_wait_and_a_retry_is_counted(forward: Any) -> None:
    turns = iter([JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "0.01"})])
    front = await forward(PlainServer(answer=lambda body: next(turns, None)))
    attempt = await front.attempt()
    async with httpx.AsyncClient(base_url=front.gateway.base_url, headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        first = await client.post("/chat/completions", json={"model": "theirs", "messages": HI})
    assert (first.status_code, first.headers["retry-after"]) == (429, "0.01")
    assert (await front.client(attempt, max_retries=2).chat.completions.create(model="theirs", messages=HI)).choices
    first_call, second = (await front.records(attempt)).calls
    assert [c.status for c in (first_call, second)] == ["error", "completed"]


async def test_a_retry_after_too_many_requests_supersedes_it(forward: Any) -> None:
    turns = iter([JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "0.01"})])
    front = await forward(PlainServer(answer=lambda body: next(turns, None)))
    attempt = await front.attempt()
    await front.client(attempt, max_retries=2).chat.completions.create(model="theirs", messages=HI)
    first, second = (await front.records(attempt)).calls
    assert (first.status, second.status, second.supersedes) == ("error", "completed", first.id)


async def test_an_upstream_that_fails_is_an_error_and_its_retry_supersedes_it(forward: Any) -> None:
    turns = iter([JSONResponse({"detail": "boom"}, 500)])
    front = await forward(PlainServer(answer=lambda body: next(turns, None)))
    attempt = await front.attempt()
    await front.client(attempt, max_retries=2).chat.completions.create(model="theirs", messages=HI)
    calls = (await front.records(attempt)).calls
    assert [c.status for c in calls] == ["error", "completed"]
    assert "boom" in (calls[0].detail or "")
    assert calls[1].supersedes == calls[0].id
    assert (await read(front, attempt)).calls == {"superseded": 1, "completed": 1}


async def test_an_upstream_that_is_not_there_is_named(forward: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    front = await forward(f"http://127.0.0.1:{port}/v1")
    attempt = await front.attempt()
    with pytest.raises(openai.InternalServerError, match=f"127.0.0.1:{port}/v1 cannot be reached") as error:
        await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    assert error.value.status_code == 502
    assert [c.status for c in (await front.records(attempt)).calls] == ["error"]


async def test_an_upstream_that_takes_too_long_is_a_timeout(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning_upstream.connection.TIMEOUT", httpx.Timeout(0.2))
    front = await forward(PlainServer("slow", delay=1.0))
    attempt = await front.attempt()
    with pytest.raises(openai.APIError, match="did not answer in time"):
        async for _ in await front.client(attempt).chat.completions.create(model="theirs", messages=HI, stream=True):
            pass
    assert [c.status for c in (await front.records(attempt)).calls] == ["error"]


async def test_a_stream_that_ends_early_or_with_an_error_is_an_error_and_keeps_what_came(forward: Any) -> None:
    piece = (
        'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"par"}}]}\n\n'
    )
    ends = iter([[piece], [piece, 'data: {"error": {"message": "out of memory"}}\n\n']])
    front = await forward(PlainServer(answer=lambda body: StreamingResponse(iter(next(ends)), media_type="text/event-stream")))
    attempt = await front.attempt()
    for said in ("before the end of a reply", "out of memory"):
        with pytest.raises(openai.APIError, match=said):
            async for _ in await front.client(attempt).chat.completions.create(model="theirs", messages=HI, stream=True):
                pass
    records = await front.records(attempt)
    assert [c.status for c in records.calls] == ["error"] * 2
    assert [(c.message["content"], c.finish_reason) for c in records.completions] == [("par", "error")] * 2


async def test_a_key_that_a_stream_repeats_goes_no_further(forward: Any) -> None:
    said = f'data: {{"error": {{"message": "bad key {KEY}", "detail": "{KEY}"}}}}\n\n'
    front = await forward(PlainServer(answer=lambda body: StreamingResponse(iter([said]), media_type="text/event-stream")))
    attempt = await front.attempt()
    with pytest.raises(openai.APIError, match="bad key") as error:
        async for _ in await front.client(attempt).chat.completions.create(model="theirs", messages=HI, stream=True):
            pass
    [call] = (await front.records(attempt)).calls
    assert KEY not in repr(call) + str(error.value) + repr(error.value.body)


async def test_a_client_that_goes_away_closes_the_upstream_and_is_counted(forward: Any) -> None:
    server = PlainServer("a long reply", delay=0.05)
    front = await forward(server)
    attempt = await front.attempt()
    stream = await front.client(attempt).chat.completions.create(model="theirs", messages=HI, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()

    async def recorded() -> bool:
        return [c.status for c in (await front.records(attempt)).calls] == ["cancelled"] and server.gone == 1

    await eventually(recorded)
    [completion] = (await front.records(attempt)).completions
    assert completion.finish_reason == "cancelled"
    assert "a long reply".startswith(completion.message["content"])


async def test_everything_is_recorded_before_the_last_byte_leaves(forward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    front = await forward(PlainServer())
    attempt = await front.attempt()
    slowly(front, monkeypatch)
    async for chunk in await front.client(attempt).chat.completions.create(model="theirs", messages=HI, stream=True):
        if chunk.choices[0].finish_reason:
            assert len((await front.records(attempt)).completions) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_responses_are_forwarded_and_recorded_without_ids(forward: Any, stream: bool) -> None:
    server = PlainServer("hello")
    front = await forward(server)
    attempt = await front.attempt(Sampling(max_tokens=9))
    answer = await front.client(attempt).responses.create(model="theirs", input="hi", stream=stream)
    if stream:
        events = [event async for event in answer]
        assert [e.type for e in events] == ["response.created", "response.output_text.delta", "response.completed"]
    else:
        assert answer.output_text == "hello"
    [completion] = (records := await front.records(attempt)).completions
    assert (records.calls[0].status, completion.message["content"], completion.finish_reason) == ("completed", "hello", "stop")
    assert completion.missing == "token ids missing: the upstream returned none"
    assert messages_of(records, records.calls[0].id) == [user("hi")]
    assert (server.bodies[0]["max_output_tokens"], server.bodies[0]["temperature"]) == (9, 1.0)


async def test_forwarded_messages_are_recorded_once_with_their_images(forward: Any) -> None:
    front = await forward(PlainServer("hello"))
    attempt = await front.attempt()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    said: Any = [{"role": "developer", "content": "Look."}, {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    for more in ([], [{"role": "assistant", "content": "hello"}, user("And now?")]):
        said += more
        await front.client(attempt).chat.completions.create(model="theirs", messages=said, tools=[CALCULATOR])
    records = await front.records(attempt)
    first, second = records.calls
    assert messages_of(records, second.id) == [{"role": "system", "content": "Look."}, *said[1:]]
    assert (second.after, second.messages) == (first.id, [[0, 3], user("And now?")])
    assert (tools_of(records, second.id), second.tool_schemas) == ([CALCULATOR], None)


async def test_completions_are_forwarded_with_their_ids_where_the_upstream_has_them(ours: Any) -> None:
    behind, front = await ours(["one", "two"])
    attempt = await front.attempt()
    answer = await front.client(attempt).completions.create(model="scripted", prompt=["a", "b"])
    assert [c.text for c in answer.choices] == ["one", "two"]
    completions = (await front.records(attempt)).completions
    [exact] = await behind_records(behind)
    assert [(c.prompt_ids.tolist(), c.response_ids.tolist()) for c in completions] == [
        (c.prompt_ids.tolist(), c.response_ids.tolist()) for c in exact
    ]
    assert [c.logprobs for c in completions] == [pytest.approx(c.logprobs) for c in exact]


async def test_a_path_that_the_upstream_lacks_and_one_that_is_not_forwarded_are_clear(forward: Any) -> None:
    front = await forward(PlainServer())
    attempt = await front.attempt()
    with pytest.raises(openai.NotFoundError, match="answered 404"):
        await front.client(attempt).completions.create(model="theirs", prompt="x")
    async with httpx.AsyncClient(base_url=front.gateway.base_url, headers={"x-api-key": attempt.key}) as client:
        answer = await client.post("/messages", json={})
        assert (await client.get("/models")).json()["data"][0]["id"] == "theirs"
    assert answer.status_code == 404
    assert "does not serve POST /v1/messages" in answer.json()["error"]["message"]


async def test_the_model_is_the_upstreams_under_either_name_and_any_where_none_is_set(forward: Any) -> None:
    server = PlainServer()
    front = await forward(server)
    attempt = await front.attempt()
    for name in ("theirs", "main"):
        await front.client(attempt).chat.completions.create(model=name, messages=HI)
    with pytest.raises(openai.NotFoundError, match="'theirs'"):
        await front.client(attempt).chat.completions.create(model="gpt-9", messages=HI)
    any_model = await forward(server, model="", token="token")
    await any_model.client("token").chat.completions.create(model="gpt-9", messages=HI, temperature=0.3)
    with pytest.raises(openai.NotFoundError, match="--model NAME"):
        await any_model.client(await any_model.attempt()).chat.completions.create(model="main", messages=HI)
    assert [body["model"] for body in server.bodies] == ["theirs", "theirs", "gpt-9"]
    assert server.bodies[-1]["temperature"] == 0.3

    async def ended() -> bool:
        states, _ = await any_model.store.list(mode="production")
        return [s.status for s in states] == ["succeeded"]

    await eventually(ended)


async def test_a_request_that_nobody_can_read_and_a_closed_attempt_are_refused_here(forward: Any) -> None:
    server = PlainServer()
    front = await forward(server)
    attempt = await front.attempt()
    async with httpx.AsyncClient(base_url=front.gateway.base_url, headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        assert (await client.post("/chat/completions", content=b"{nope")).status_code == 400
    await front.store.finish(attempt.id, "succeeded")
    with pytest.raises(openai.AuthenticationError, match="closed"):
        await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    assert [c.status for c in (await front.records(attempt)).calls] == ["refused"] * 2
    assert not server.bodies


async def test_many_calls_at_once_are_each_answered_and_recorded(ours: Any) -> None:
    behind, front = await ours(lambda prompt, sampling: prompt.split("user\n")[1].split("<")[0][::-1])
    attempts = [await front.attempt() for _ in range(8)]

    async def talk(number: int, attempt: Attempt) -> None:
        client = front.client(attempt)
        for turn in range(3):
            text = f"question {number} {turn}"
            answer = await client.chat.completions.create(model="scripted", messages=[user(text)])
            assert answer.choices[0].message.content == text[::-1]

    await asyncio.gather(*(talk(i, a) for i, a in enumerate(attempts)))
    for attempt in attempts:
        assert [c.status for c in (await front.records(attempt)).calls] == ["completed"] * 3
    assert len(await behind_records(behind)) == 24


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "Set it to the base_url"),
        ({"url": "http://user:pass@host/v1"}, "more than an address"),
        ({"url": "http://host/v1", "key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which is not set"),
    ],
)
def test_settings_that_cannot_be_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        UpstreamSettings(**settings)


async def test_an_upstream_serves_no_policy_of_ours() -> None:
    with pytest.raises(UnsupportedSetting, match="no trainer can change them"):
        await Upstream(UpstreamSettings(url="http://host/v1"), "m").load(Upstream(UpstreamSettings(url="http://host/v1"), "m").policy)


async def test_a_completion_without_ids_comes_back_from_a_file_as_it_was(tmp_path: Any, forward: Any) -> None:
    front = await forward(PlainServer())
    attempt = await front.attempt()
    await front.client(attempt).chat.completions.create(model="theirs", messages=HI)
    records = await front.records(attempt)
    assert records.completions[0].missing
    store = open_store(f"sqlite:{tmp_path / 'x.db'}")
    try:
        kept = await store.begin(Rollout(task=Task(new_id(), None), mode="train"), "test", lease=60)
        completion = replace(records.completions[0], attempt_id=kept.id)
        await store.record([completion])
        assert (await store.records(kept.id)).completions == (completion,)
    finally:
        await store.close()
