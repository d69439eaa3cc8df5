"""`/v1/messages`: Anthropic's form, through the official client, over the same token path."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.gateway import Gateway
from agentlightning.types import Attempt, Completion, Sampling
from gateway_house import CALCULATOR, SEARCH, House, eventually, slowly, user

HI = [user("hi")]


def offered(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    return {"name": function["name"], "description": function.get("description", ""), "input_schema": function["parameters"]}


TOOLS = [offered(CALCULATOR), offered(SEARCH)]


def connect(h: House, attempt: Attempt | str, **more: Any) -> anthropic.AsyncAnthropic:
    key = attempt if isinstance(attempt, str) else attempt.key
    base_url = h.gateway.base_url.removesuffix("/v1")
    client = anthropic.AsyncAnthropic(base_url=base_url, **{"api_key": key, "max_retries": 0, **more})
    h._stack.push_async_callback(client.close)
    return client


async def ask(h: House, attempt: Attempt, messages: list[Any], **more: Any) -> Any:
    return await connect(h, attempt).messages.create(**{"model": "scripted", "max_tokens": 100, "messages": messages, **more})


def result(block: Any, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": content, **more}]}


def starts(later: Completion, earlier: Completion) -> bool:
    sampled = [*earlier.prompt_ids, *earlier.response_ids]
    return later.continues == earlier.id and list(later.prompt_ids[: len(sampled)]) == sampled


async def test_a_plain_call_is_answered_and_recorded_exactly(house: Any) -> None:
    h = await house(["héllo 😀"])
    attempt = await h.attempt(Sampling(temperature=0.7, max_tokens=40))
    raw = await connect(h, attempt).messages.with_raw_response.create(
        model="scripted", max_tokens=90, system="Be kind.", messages=HI, metadata={"user_id": "u"}, extra_body={"temperature": 0.1}
    )
    message = await raw.parse()
    [call], [completion] = (records := await h.records(attempt)).calls, records.completions
    assert (message.type, message.role, message.model, message.stop_reason) == ("message", "assistant", "scripted", "end_turn")
    assert [(block.type, block.text) for block in message.content] == [("text", "héllo 😀")]
    assert message.id == f"msg_{call.id}"
    assert raw.headers[CALL_HEADER] == call.id
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len(completion.prompt_ids), len(completion.response_ids))
    assert h.text(completion.prompt_ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (completion.sampling.temperature, completion.sampling.max_tokens) == (0.7, 40)
    assert (call.status, call.choices) == ("completed", 1)


async def test_the_synchronous_client_gets_the_same_plain_and_streaming(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()

    def work() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=attempt.key) as client:
            plain = client.messages.create(model="scripted", max_tokens=9, messages=HI)  # type: ignore[arg-type]
            with client.messages.stream(model="scripted", max_tokens=9, messages=HI) as stream:  # type: ignore[arg-type]
                return plain.content[0].text, "".join(stream.text_stream)  # type: ignore[union-attr]

    assert await asyncio.to_thread(work) == ("one", "two")
    assert [c.status for c in (await h.records(attempt)).calls] == ["completed"] * 2


@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_a_stream_has_the_events_of_anthropics_form_in_their_order(house: Any, chunk: int) -> None:
    h = await house(lambda prompt, sampling: 'Wörk 😀 it.\nCALL calculator(3+4)\nCALL search({"query": "x"})', chunk=chunk)
    attempt = await h.attempt()
    stream = await ask(h, attempt, HI, tools=TOOLS, stream=True)
    events = [event async for event in stream]
    names = [event.type for event in events if not (event.type == "content_block_delta" and event.delta.type == "text_delta")]
    assert names == [
        "message_start",
        "content_block_start", "content_block_stop",
        *["content_block_start", "content_block_delta", "content_block_stop"] * 2,
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert [e.index for e in events if e.type == "content_block_start"] == [0, 1, 2]
    assert [e.index for e in events if e.type == "content_block_stop"] == [0, 1, 2]
    texts = [e.delta.text for e in events if e.type == "content_block_delta" and e.delta.type == "text_delta"]
    assert "".join(texts) == "Wörk 😀 it."
    assert all(e.index == 0 for e in events if e.type == "content_block_delta" and e.delta.type == "text_delta")
    assert [e.content_block.input for e in events if e.type == "content_block_start" and e.index] == [{}, {}]
    assert [json.loads(e.delta.partial_json) for e in events if e.type == "content_block_delta" and e.delta.type == "input_json_delta"] == [
        {"expression": "3+4"}, {"query": "x"}
    ]  # fmt: skip
    [completion] = (await h.records(attempt)).completions
    start, delta = events[0].message, events[-2]
    assert (start.content, start.stop_reason, start.usage.input_tokens) == ([], None, len(completion.prompt_ids))
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("tool_use", len(completion.response_ids))


async def test_the_clients_own_accumulation_of_a_stream_equals_the_plain_answer(house: Any) -> None:
    h = await house(lambda prompt, sampling: "So.\nCALL calculator(3+4)")
    attempt = await h.attempt(seed=1)
    plain = await ask(h, attempt, HI, tools=TOOLS)
    async with connect(h, attempt).messages.stream(model="scripted", max_tokens=100, messages=HI, tools=TOOLS) as stream:
        streamed = await stream.get_final_message()
    facts = [(b.type, getattr(b, "text", None), getattr(b, "name", None), getattr(b, "input", None)) for b in plain.content]
    assert [(b.type, getattr(b, "text", None), getattr(b, "name", None), getattr(b, "input", None)) for b in streamed.content] == facts
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (plain.stop_reason, plain.usage.output_tokens)


async def test_everything_is_recorded_before_the_stop_reason_leaves(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    slowly(h, monkeypatch)
    async for event in await ask(h, attempt, HI, stream=True):
        if event.type == "message_delta":
            assert len((await h.records(attempt)).completions) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_conversation_is_one_chain_of_sampled_tokens(house: Any, stream: bool) -> None:
    h = await house(["Let me see.\nCALL calculator(3+4)", 'CALL calculator(7*2)\nCALL search({"query": "x"})', "It is 14."])
    attempt = await h.attempt()
    messages: list[Any] = [user("2*(3+4)?")]

    async def turn() -> Any:
        settings: dict[str, Any] = {"model": "scripted", "max_tokens": 100, "system": "Solve it.", "tools": TOOLS, "messages": messages}
        client = connect(h, attempt)
        if not stream:
            return await client.messages.create(**settings)
        async with client.messages.stream(**settings) as events:
            return await events.get_final_message()

    first = await turn()
    assert [block.type for block in first.content] == ["text", "tool_use"]
    messages += [first.to_param(), result(first.content[1], [{"type": "text", "text": "7"}])]
    second = await turn()
    assert [block.type for block in second.content] == ["tool_use", "tool_use"]
    both = [result(block, text)["content"][0] for block, text in zip(second.content, ("14", "found"), strict=True)]
    messages += [{"role": "assistant", "content": second.content}, {"role": "user", "content": [*both, {"type": "text", "text": "So?"}]}]
    third = await turn()
    assert [block.text for block in third.content] == ["It is 14."]
    one, two, three = (records := await h.records(attempt)).completions
    assert starts(two, one)
    assert starts(three, two)
    assert [call.context for call in records.calls] == ["first", "bridged", "bridged"]
    assert h.text(three.prompt_ids).endswith(
        "<|im_start|>tool\n14<|im_end|>\n<|im_start|>tool\nfound<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_tokens_that_the_tokenizer_would_merge_are_kept_as_sampled(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    letters = [h.engine.tokenizer.convert_tokens_to_ids(c) for c in "the"]
    assert len(h.engine.tokenizer.encode("the")) == 1
    h.engine._script = [letters, "next"]
    attempt = await h.attempt()
    reply = await ask(h, attempt, [user("a")])
    messages = [user("a"), reply.to_param(), user("b")]
    counted = await connect(h, attempt).messages.count_tokens(model="scripted", messages=messages)
    await ask(h, attempt, messages)
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)
    assert counted.input_tokens == len(second.prompt_ids)
    assert list(second.prompt_ids[len(first.prompt_ids) :][:4]) == [*letters, 2]


async def test_a_conversation_begun_in_openais_form_goes_on_in_anthropics(house: Any) -> None:
    h = await house(["CALL calculator(3+4)", "It is 7."])
    attempt = await h.attempt()
    tool = {**CALCULATOR, "function": {**CALCULATOR["function"]}}
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=HI, tools=[tool])
    [call] = answer.choices[0].message.tool_calls
    use = {"type": "tool_use", "id": call.id, "name": call.function.name, "input": json.loads(call.function.arguments)}
    back = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "7"}]}
    await ask(h, attempt, [*HI, {"role": "assistant", "content": [use]}, back], tools=[TOOLS[0]])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)


async def test_arguments_that_are_no_object_come_and_go_in_a_form_of_their_own(house: Any) -> None:
    h = await house(['{"query": "x', "done"])
    attempt = await h.attempt()
    answer = await ask(h, attempt, HI, tools=[TOOLS[1]], tool_choice={"type": "any"})
    [block] = answer.content
    assert (block.name, block.input) == ("search", {"INVALID_JSON": '{"query": "x'})
    await ask(h, attempt, [*HI, answer.to_param(), result(block, "no JSON", is_error=True)], tools=[TOOLS[1]])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)
    assert "<|im_start|>tool\nno JSON<|im_end|>" in h.text(second.prompt_ids)


async def test_tool_choice_is_honoured(house: Any) -> None:
    h = await house(lambda prompt, sampling: "3+4)" if prompt.endswith("(") else "CALL calculator(1)\nCALL calculator(2)")
    attempt = await h.attempt()
    named = await ask(h, attempt, HI, tools=TOOLS, tool_choice={"type": "tool", "name": "calculator"})
    assert [(b.name, b.input) for b in named.content] == [("calculator", {"expression": "3+4"})]
    single = await ask(h, attempt, HI, tools=TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [b.input for b in single.content] == [{"expression": "1"}]
    both = await ask(h, attempt, HI, tools=TOOLS, tool_choice={"type": "auto"})
    assert [b.input for b in both.content] == [{"expression": "1"}, {"expression": "2"}]
    none = await ask(h, attempt, HI, tools=TOOLS, tool_choice={"type": "none"})
    assert [b.type for b in none.content] == ["text"]
    assert "Tools:" not in h.engine.asked[-1].prompt


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_sequence_says_which_and_a_cut_says_so(house: Any, stream: bool) -> None:
    h = await house(["abcObs:def", "hello there"])
    attempt = await h.attempt(Sampling(stop=("never",)))
    seen: list[tuple[Any, ...]] = []
    for more in ({"stop_sequences": ["zz", "Obs:"]}, {"max_tokens": 5}):
        if stream:
            settings: dict[str, Any] = {"model": "scripted", "max_tokens": 100, "messages": HI, **more}
            async with connect(h, attempt).messages.stream(**settings) as events:
                message = await events.get_final_message()
        else:
            message = await ask(h, attempt, HI, **more)
        seen.append((message.content[0].text, message.stop_reason, message.stop_sequence))
    assert seen == [("abc", "stop_sequence", "Obs:"), ("hello", "max_tokens", None)]
    assert h.text((await h.records(attempt)).completions[0].response_ids) == "abcObs:"


async def test_a_stop_string_of_the_run_is_the_end_of_the_turn_for_the_agent(house: Any) -> None:
    h = await house(["abcENDdef"])
    message = await ask(h, await h.attempt(Sampling(stop=("END",))), HI)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == ("abc", "end_turn", None)


async def test_a_reply_without_text_has_no_blocks_and_is_continued(house: Any) -> None:
    h = await house(["", "next"])
    attempt = await h.attempt()
    empty = await ask(h, attempt, HI)
    assert (empty.content, empty.stop_reason, empty.usage.output_tokens) == ([], "end_turn", 1)
    await ask(h, attempt, [*HI, empty.to_param(), user("on")])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)


async def test_a_schema_is_asked_for_and_parsed_by_the_client(house: Any) -> None:
    class Answer(BaseModel):
        value: int

    h = await house(['{"value": 7}'])
    attempt = await h.attempt()
    parsed = await connect(h, attempt).messages.parse(model="scripted", max_tokens=50, messages=HI, output_format=Answer)
    assert parsed.parsed_output == Answer(value=7)
    assert '"value"' in h.engine.asked[0].prompt


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, r"messages\[0\].content\[1\] is 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}]}]}, "'image'"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'robot'"),
        ({"messages": []}, "messages is empty"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server tool 'web_search_20250305'"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "Name one of the tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "Use auto, any, tool or none"),
        ({"stop_sequences": [""]}, "empty string"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"extra_body": {"temperature": 9}}, "temperature is 9"),
        ({"extra_body": {"mcp_servers": [{"url": "x"}]}}, "mcp_servers"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_in_anthropics_form(house: Any, change: dict[str, Any], said: str) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    with pytest.raises(anthropic.BadRequestError, match=said) as error:
        await ask(h, attempt, **{"messages": HI, **change})
    body: Any = error.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    [call] = (await h.records(attempt)).calls
    assert (call.status, call.choices) == ("refused", 0)


async def test_max_tokens_must_be_said(house: Any) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"x-api-key": attempt.key}) as client:
        answer = await client.post("/messages", json={"model": "scripted", "messages": HI})
    assert (answer.status_code, answer.json()["error"]["message"][:10]) == (400, "max_tokens")
    assert [c.status for c in (await h.records(attempt)).calls] == ["refused"]


async def test_both_of_anthropics_keys_name_the_attempt(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    first, second = await h.attempt(), await h.attempt()
    await ask(h, first, HI)
    other = connect(h, first, api_key=None, auth_token=second.key)
    await other.messages.create(model="scripted", max_tokens=9, messages=HI)
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"x-api-key": second.key}) as client:
        assert (await client.post("/messages", json={"model": "scripted", "max_tokens": 9, "messages": HI})).status_code == 200
    assert [len((await h.records(a)).calls) for a in (first, second)] == [1, 2]


async def test_a_call_of_nobody_and_an_unknown_model_are_errors_of_their_own_types(house: Any) -> None:
    h = await house(["x"])
    with pytest.raises(anthropic.AuthenticationError) as stranger:
        await ask(h, "foreign", HI)  # type: ignore[arg-type]
    assert stranger.value.body["error"]["type"] == "authentication_error"  # type: ignore[index,call-overload]
    with pytest.raises(anthropic.NotFoundError, match="scripted") as unknown:
        await ask(h, await h.attempt(), HI, model="claude")
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]


async def test_a_call_with_the_servers_token_becomes_a_production_rollout(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello", options={"token": "secret"})
    await ask(h, "secret", HI, system="s", extra_body={"temperature": 0.3, "top_k": 5})  # type: ignore[arg-type]

    async def ended() -> bool:
        states, _ = await h.store.list(mode="production")
        return [s.status for s in states] == ["succeeded"]

    await eventually(ended)
    [state], _ = await h.store.list(mode="production")
    [completion] = (await h.store.records(state.attempts[0].id)).completions
    assert (completion.sampling.temperature, completion.sampling.top_k) == (0.3, 5)
    assert state.rollout.task.input == {"system": "s", "messages": HI}


async def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_event(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello there", chunk=1)
    inner = h.engine.generate

    async def broken(prompt: Any, sampling: Any, **rollout: Any) -> Any:
        async for chunk in inner(prompt, sampling):
            yield chunk
            if h.engine.asked[-1].sent > 3:
                raise RuntimeError("out of memory")

    h.engine.generate = broken
    attempt = await h.attempt()
    with pytest.raises(anthropic.APIStatusError, match="out of memory"):
        async for _ in await ask(h, attempt, HI, stream=True):
            pass
    with pytest.raises(anthropic.InternalServerError, match="out of memory"):
        await ask(h, attempt, HI)
    assert [c.status for c in (await h.records(attempt)).calls] == ["error"] * 2


async def test_a_client_that_goes_away_is_counted_as_cancelled(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello there, this is long", chunk=1, delay=0.02)
    attempt = await h.attempt()
    stream = await ask(h, attempt, HI, stream=True)
    async for event in stream:
        if event.type == "content_block_delta":
            break
    await stream.close()

    async def recorded() -> bool:
        return [c.status for c in (await h.records(attempt)).calls] == ["cancelled"]

    await eventually(recorded)


async def test_tokens_are_counted_as_a_call_would_have_them_and_no_call_is_recorded(house: Any) -> None:
    h = await house(["CALL calculator(3+4)", "x"], options={"token": "secret"})
    attempt = await h.attempt()
    client = connect(h, attempt)
    messages: list[Any] = [user("a")]
    for _ in range(2):
        counted = await client.messages.count_tokens(model="scripted", messages=messages, tools=TOOLS)
        answer = await ask(h, attempt, messages, tools=TOOLS)
        assert counted.input_tokens == answer.usage.input_tokens == len((await h.records(attempt)).completions[-1].prompt_ids)
        messages += [answer.to_param(), result(answer.content[0], "7")] if answer.stop_reason == "tool_use" else []
    assert len((await h.records(attempt)).calls) == 2
    assert (await connect(h, "secret").messages.count_tokens(model="scripted", messages=HI)).input_tokens > 0
    states, _ = await h.store.list(mode="production")
    assert not states
    with pytest.raises(anthropic.AuthenticationError):
        await connect(h, "foreign").messages.count_tokens(model="scripted", messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="only text"):
        await client.messages.count_tokens(model="scripted", messages=[{"role": "user", "content": [IMAGE]}])  # type: ignore[list-item]


async def test_another_gateway_goes_on_in_the_middle_of_a_conversation(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()
    first = await ask(h, attempt, [user("a")])
    await h.gateway.stop()
    h.gateway = Gateway(h.store, h.engine)
    await h.gateway.start()
    try:
        await ask(h, attempt, [user("a"), first.to_param(), user("b")])
    finally:
        await h.gateway.stop()
    one, two = (await h.records(attempt)).completions
    assert starts(two, one)


async def test_a_last_message_of_the_assistant_is_the_beginning_of_the_reply(house: Any) -> None:
    h = await house([" Paris.", "never"])
    attempt = await h.attempt()
    client = anthropic.AsyncAnthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=attempt.key, max_retries=0)
    begun: Any = [{"role": "user", "content": "Where is the Louvre?"}, {"role": "assistant", "content": "It is in"}]
    answer = await client.messages.create(model="scripted", max_tokens=40, messages=begun)
    assert answer.content[0].text == " Paris."
    [completion] = (await h.records(attempt)).completions
    assert h.text(completion.prompt_ids).endswith("<|im_start|>assistant\nIt is in")
    called = [*begun[:1], {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "search", "input": {}}]}]
    with pytest.raises(anthropic.BadRequestError, match="tool_result"):
        await client.messages.create(model="scripted", max_tokens=40, messages=called)
    await client.close()
