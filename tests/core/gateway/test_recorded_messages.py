"""Each call records what the framework sent, in one form for all APIs, and a conversation is stored once."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway_house import CALCULATOR, SEARCH, House, user

from agentlightning.contracts.store import AttemptRecords
from agentlightning.gateway import Gateway
from agentlightning.gateway.conversation import History
from agentlightning.gateway.kept_messages import KeptMessages
from agentlightning.stores.messages import messages_of, new_messages, sent_again, tools_of
from agentlightning.stores.serialization import encode
from agentlightning.types import Attempt, Call, Completion, Sampling

SYSTEM = {"role": "system", "content": "Be exact."}
FUNCTION = CALCULATOR["function"]
ANTHROPIC_TOOL = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}
TURNS = ["CALL calculator(3+4)", "It is 7.", "Really."]


def call_of(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "calculator", "arguments": json.dumps({"expression": "3+4"})}}


def conversation(id: str) -> list[dict[str, Any]]:
    """What every API's client says in these tests, before its third reply."""
    return [
        SYSTEM, user("3+4?"), {"role": "assistant", "content": "", "tool_calls": [call_of(id)]},
        {"role": "tool", "content": "7", "tool_call_id": id}, {"role": "assistant", "content": "It is 7."}, user("Sure?"),
    ]  # fmt: skip


async def chat(h: House, attempt: Attempt, **more: Any) -> str:
    client, messages = h.client(attempt), [SYSTEM, user("3+4?")]

    async def ask() -> Any:
        answer = await client.chat.completions.create(model="scripted", messages=messages, tools=[CALCULATOR], **more)
        return answer.choices[0].message

    first = await ask()
    messages += [first.model_dump(), {"role": "tool", "content": "7", "tool_call_id": first.tool_calls[0].id}]
    messages += [(await ask()).model_dump(), user("Sure?")]
    await ask()
    return first.tool_calls[0].id


async def responses(h: House, attempt: Attempt) -> str:
    client, items = h.client(attempt), [user("3+4?")]
    tool = {"type": "function", **FUNCTION}

    async def ask() -> Any:
        return await client.responses.create(model="scripted", instructions="Be exact.", input=items, tools=[tool])

    first = await ask()
    items += [*first.output, {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "7"}]
    items += [*(await ask()).output, user("Sure?")]
    await ask()
    return first.output[0].call_id


async def previous_responses(h: House, attempt: Attempt) -> str:
    tool, client = {"type": "function", **FUNCTION}, h.client(attempt)
    more: Any = {"model": "scripted", "instructions": "Be exact.", "tools": [tool]}
    first = await client.responses.create(input="3+4?", **more)
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "7"}
    second = await client.responses.create(input=[result], previous_response_id=first.id, **more)
    await client.responses.create(input="Sure?", previous_response_id=second.id, **more)
    return first.output[0].call_id


async def messages(h: House, attempt: Attempt) -> str:
    turns: list[Any] = [user("3+4?")]
    async with anthropic.AsyncAnthropic(base_url=h.gateway.base_url.removesuffix("/v1"), api_key=attempt.key, max_retries=0) as client:

        async def ask() -> Any:
            more: Any = {"system": "Be exact.", "tools": [ANTHROPIC_TOOL]}
            return (await client.messages.create(model="scripted", max_tokens=60, messages=turns, **more)).content

        first = await ask()
        turns += [{"role": "assistant", "content": first}]
        turns += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": first[0].id, "content": "7"}]}]
        turns += [{"role": "assistant", "content": await ask()}, user("Sure?")]
        await ask()
        return first[0].id


@pytest.mark.parametrize("api", [chat, responses, previous_responses, messages])
async def test_every_api_records_the_same_messages_tools_and_replies(house: Any, api: Any) -> None:
    h = await house(TURNS)
    attempt = await h.attempt()
    id = await api(h, attempt)
    records = await h.records(attempt)
    first, second, third = records.calls
    said = conversation(id)
    assert [messages_of(records, call.id) for call in records.calls] == [said[:2], said[:4], said]
    # each message is stored once: replies are in the completions
    assert [new_messages(call) for call in records.calls] == [said[:2], said[3:4], said[5:]]
    assert [call.after for call in records.calls] == [None, first.id, second.id]
    for call in records.calls:
        [tool] = tools_of(records, call.id) or []
        assert (tool["function"]["name"], tool["function"]["parameters"]) == (FUNCTION["name"], FUNCTION["parameters"])
    assert [call.tool_schemas is None for call in records.calls] == [False, True, True]
    assert [call.tools_from for call in records.calls] == [None, first.id, first.id]
    assert [completion.message["content"] for completion in records.completions] == [None, "It is 7.", "Really."]
    assert third.status == "completed"


async def test_text_completions_record_their_prompts(house: Any) -> None:
    h = await house(["b", "c", "d"])
    attempt = await h.attempt()
    client = h.client(attempt)
    await client.completions.create(model="scripted", prompt=["a", "aa"])
    await client.completions.create(model="scripted", prompt=[1, 2, 3])
    records = await h.records(attempt)
    texts, ids = records.calls
    assert messages_of(records, texts.id) == [{"role": "prompt", "content": "a"}, {"role": "prompt", "content": "aa"}]
    assert messages_of(records, ids.id) == [{"role": "prompt", "content": None}]  # the completion has the ids
    assert tools_of(records, texts.id) is None


async def test_a_refused_call_records_what_it_sent_once_however_often_it_comes(house: Any) -> None:
    h = await house([])
    attempt = await h.attempt()
    client = h.client(attempt)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    shown: Any = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="only text content"):
            await client.chat.completions.create(model="scripted", messages=shown, tools=[SEARCH])
    with pytest.raises(openai.BadRequestError, match="temperature is 9"):
        await client.chat.completions.create(model="scripted", messages=[SYSTEM, user("hi")], temperature=9)
    with pytest.raises(openai.BadRequestError, match="only text content"):
        await client.responses.create(model="scripted", instructions="Look.", input=[{"role": "user", "content": [image]}])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError):
        await client.post("/chat/completions", body={"model": "scripted", "messages": "hello"}, cast_to=object)
    records = await h.records(attempt)
    assert {call.status for call in records.calls} == {"refused"}
    assert [messages_of(records, call.id) for call in records.calls] == [
        shown, shown, [SYSTEM, user("hi")], [{"role": "system", "content": "Look."}, {"role": "user", "content": [image]}], [user("hello")],
    ]  # fmt: skip
    assert [len(new_messages(call) or ()) for call in records.calls[:3]] == [2, 0, 1]
    assert [(call.tools_from, call.tool_schemas) for call in records.calls[:2]] == [(None, [SEARCH]), (records.calls[0].id, None)]


async def test_a_body_that_nobody_can_read_has_no_messages(house: Any) -> None:
    h = await house([])
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError):
        await h.client(attempt).post("/chat/completions", content=b"{", cast_to=object)
    records = await h.records(attempt)
    assert messages_of(records, records.calls[0].id) is None


async def test_tools_that_tool_choice_hides_are_recorded_and_counted_as_not_offered(house: Any) -> None:
    h = await house(["a"])
    attempt = await h.attempt()
    await h.client(attempt).chat.completions.create(model="scripted", messages=[user("hi")], tools=[SEARCH], tool_choice="none")
    records = await h.records(attempt)
    assert (records.calls[0].tools, tools_of(records, records.calls[0].id)) == (0, [SEARCH])


async def test_another_gateway_continues_the_record_where_the_first_ended(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()

    async def ask(messages: Any) -> None:
        await h.client(attempt).chat.completions.create(model="scripted", messages=messages, tools=[SEARCH])

    await ask([SYSTEM, user("a")])
    await h.gateway.stop()
    h.gateway = Gateway(h.store, h.engine)
    await h.gateway.start()
    said = [SYSTEM, user("a"), {"role": "assistant", "content": "one"}, user("b")]
    await ask(said)
    await h.gateway.stop()
    records = await h.records(attempt)
    first, second = records.calls
    assert (second.after, second.messages, second.tools_from) == (first.id, [[0, 3], user("b")], first.id)
    assert messages_of(records, second.id) == said


@pytest.mark.parametrize("change", ["system", "window", "summary", "fork"])
async def test_an_agent_that_edits_its_history_stores_it_once_too(house: Any, change: str) -> None:
    """The system message names the turn; only a window is sent; the start is summarised; two branches alternate."""
    turns = 12
    h = await house([f"reply {turn} " + "x" * 100 for turn in range(turns)])
    attempt = await h.attempt()
    client, histories, asked = h.client(attempt), ([SYSTEM], [SYSTEM]), list[Any]()
    for turn in range(turns):
        history = histories[turn % 2 if change == "fork" else 0]
        history.append(user(f"question {turn} " + "y" * 100))
        if change == "system":
            history[0] = {"role": "system", "content": f"Turn {turn}."}
        sent = [history[0], *history[1:][-5:]] if change == "window" else list(history)
        if change == "summary" and turn > 5:
            sent = [SYSTEM, user("Summary."), *history[6:]]
        answer = await client.chat.completions.create(model="scripted", messages=sent)
        asked.append(sent)
        history.append({"role": "assistant", "content": answer.choices[0].message.content})
    records = await h.records(attempt)
    assert [messages_of(records, call.id) for call in records.calls] == asked
    new = [len(new_messages(call) or ()) for call in records.calls]
    assert max(new[1:]) <= 2, new
    sizes = [len(encode(call)) for call in records.calls]
    assert max(sizes[1:]) < sizes[0] + 200, sizes


# --- any conversations -----------------------------------------------------------------------------------------------------------------

texts = st.sampled_from(["", "a", "b", "c"])
sent_message = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": texts}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(st.fixed_dictionaries({"type": st.just("image")}), max_size=1)}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": texts}, optional={"tool_calls": texts.map(lambda id: [call_of(id)])}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": texts, "tool_call_id": texts}),
)


@st.composite
def next_request(draw: Any, said: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Messages after those of an earlier conversation, which the agent may have cut and edited."""
    base = list(draw(st.sampled_from(said))) if said else []
    for _ in range(draw(st.integers(0, 2)) if base else 0):
        start = draw(st.integers(0, len(base)))
        base[start : draw(st.integers(start, len(base)))] = draw(st.lists(sent_message, max_size=1))
    return [*base, *draw(st.lists(sent_message, max_size=3))]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_the_messages_of_any_calls_come_back_as_they_were_sent(data: Any) -> None:
    kept, calls, completions, asked = KeptMessages(), list[Call](), list[Completion](), list[Any]()
    said = list[list[dict[str, Any]]]()
    attempt = Attempt(id="a", rollout_id="r", number=1, key="k", worker="w", status="running", started=0)
    for number in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):  # another gateway
            kept = KeptMessages()
            for call in calls:
                kept.add(call, [reply for reply in completions if reply.call_id == call.id])
        sent = data.draw(next_request(said))
        history = History.of("h", sent) if sent and all(isinstance(message["content"], str) for message in sent) else None
        after, parts = kept.quote(sent, history.chains[0].hashes if history is not None else ())
        hash = "" if history is None else history.request_hash
        call = Call(id=str(number), attempt_id="a", index=number, status="completed", after=after, messages=parts, request_hash=hash)
        replies = [
            Completion(
                call_id=call.id, attempt_id="a", choice=choice, prompt_ids=[], response_ids=[], logprobs=None, versions=[],
                sampling=Sampling(), finish_reason="stop", conversation="" if history is None else history.conversation(0, message),
                message=message,
            )
            for choice, message in enumerate(data.draw(st.lists(sent_message.filter(lambda m: m["role"] == "assistant"), max_size=2)))
        ]  # fmt: skip
        kept.add(call, replies)
        calls.append(call)
        completions += replies
        asked.append(sent)
        said += [[*sent, sent_again(reply.message)] for reply in replies] or [sent]
    records = AttemptRecords(attempt=attempt, calls=tuple(calls), completions=tuple(completions))
    assert [messages_of(records, call.id) for call in calls] == asked
