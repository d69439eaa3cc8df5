"""`/v1/responses` with the official client: items in, items and events out, and conversations of sampled tokens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.errors import EngineError
from agentlightning.gateway import Gateway
from agentlightning.stores.messages import new_messages
from agentlightning.types import Attempt, Completion, Sampling
from gateway_house import House, eventually

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "name": "calculator",
    "description": "works out an arithmetic expression.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    "strict": True,
}


async def ask(h: House, attempt: Attempt, input: Any, **more: Any) -> Any:
    return await h.client(attempt).responses.create(**{"model": "scripted", "input": input, **more})


def starts(later: Completion, earlier: Completion) -> bool:
    sampled = [*earlier.prompt_ids, *earlier.response_ids]
    return later.continues == earlier.id and list(later.prompt_ids[: len(sampled)]) == sampled


async def contexts(h: House, attempt: Attempt) -> list[str | None]:
    return [call.context for call in (await h.records(attempt)).calls]


async def test_a_response_is_answered_and_recorded_exactly(house: Any) -> None:
    h = await house(["héllo 😀"])
    attempt = await h.attempt(Sampling(temperature=0.7, max_tokens=40))
    raw = await h.client(attempt).responses.with_raw_response.create(
        model="scripted", input="hi", instructions="Be kind.", metadata={"a": "b"}, extra_body={"return_token_ids": True}
    )
    answer = raw.parse()
    records = await h.records(attempt)
    [call], [completion] = records.calls, records.completions
    assert answer.output_text == "héllo 😀"
    assert (answer.status, answer.id, answer.metadata) == ("completed", f"resp_{call.id}", {"a": "b"})
    assert answer.model_extra["system_fingerprint"] == raw.headers[CALL_HEADER] == call.id
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (len(completion.prompt_ids), len(completion.response_ids))
    assert (answer.temperature, answer.instructions, answer.store) == (0.7, "Be kind.", True)
    assert answer.model_extra["token_ids"] == completion.response_ids.tolist()
    assert answer.model_extra["prompt_token_ids"] == completion.prompt_ids.tolist()
    prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert h.text(completion.prompt_ids) == prompt
    assert (call.status, call.context) == ("completed", "first")


async def test_the_synchronous_client_gets_the_same(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()

    def work() -> tuple[str, str]:
        with openai.OpenAI(base_url=h.gateway.base_url, api_key=attempt.key) as client:
            plain = client.responses.create(model="scripted", input="hi").output_text
            with client.responses.stream(model="scripted", input="hi") as stream:
                return plain, stream.get_final_response().output_text

    assert await asyncio.to_thread(work) == ("one", "two")


@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_the_events_of_text_come_in_openais_order(house: Any, chunk: int) -> None:
    h = await house(["wörld 😀!"], chunk=chunk)
    attempt = await h.attempt()
    events = [e async for e in await ask(h, attempt, "hi", stream=True, include=["message.output_text.logprobs"])]
    types = [e.type.removeprefix("response.") for e in events]
    deltas = [e for e in events if e.type == "response.output_text.delta"]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert types[4 : 4 + len(deltas)] == ["output_text.delta"] * len(deltas)
    assert types[4 + len(deltas) :] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in deltas) == events[-1].response.output_text == "wörld 😀!"
    assert not any("\ufffd" in e.delta for e in deltas)
    [completion] = (await h.records(attempt)).completions
    scores = [score.logprob for e in deltas for score in e.logprobs]
    assert scores == pytest.approx(completion.logprobs[:-1])
    assert [score.logprob for score in events[-1].response.output[0].content[0].logprobs] == pytest.approx(completion.logprobs[:-1])
    assert events[-1].response.usage.output_tokens == len(completion.response_ids)


@pytest.mark.parametrize("chunk", [1, 100])
async def test_function_calls_are_items_plain_and_streaming(house: Any, chunk: int) -> None:
    h = await house(lambda prompt, sampling: "Let me see.\nCALL calculator(3+4)\nCALL calculator(1+1)", chunk=chunk)
    attempt = await h.attempt()
    plain = await ask(h, attempt, "hi", tools=[CALCULATOR])
    async with h.client(attempt).responses.stream(model="scripted", input="hi", tools=[CALCULATOR]) as stream:
        types = [e.type async for e in stream]
        final = await stream.get_final_response()
    for answer in (plain, final):
        message, *calls = answer.output
        assert message.content[0].text == "Let me see."
        assert [(c.type, c.name, json.loads(c.arguments)["expression"]) for c in calls] == [
            ("function_call", "calculator", "3+4"),
            ("function_call", "calculator", "1+1"),
        ]
        assert len({c.call_id for c in calls} | {c.id for c in calls}) == 4
    per_call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert types[-9:] == [f"response.{t}" for t in (*per_call, *per_call, "completed")]
    assert [c.finish_reason for c in (await h.records(attempt)).completions] == ["tool_calls"] * 2
    assert len((await ask(h, attempt, "hi", tools=[CALCULATOR], parallel_tool_calls=False)).output) == 2


async def test_the_gateways_own_items_come_back_as_the_conversation_that_was_sampled(house: Any) -> None:
    h = await house(["Let me see.\nCALL calculator(3+4)", "CALL calculator(7*2)", "It is 14."])
    attempt = await h.attempt()
    more: dict[str, Any] = {"tools": [CALCULATOR], "instructions": "Solve it.", "include": ["message.output_text.logprobs"]}
    history: list[Any] = [{"role": "user", "content": "2*(3+4)?"}]
    for result in ("7", "14"):
        answer = await ask(h, attempt, history, **more)
        history += answer.output  # as they are: ids, status, log-probabilities and all
        history.append({"type": "function_call_output", "call_id": answer.output[-1].call_id, "output": result})
    assert (await ask(h, attempt, history, **more)).output_text == "It is 14."
    first, second, third = (await h.records(attempt)).completions
    assert starts(second, first)
    assert starts(third, second)
    assert await contexts(h, attempt) == ["first", "bridged", "bridged"]
    assert h.text(third.prompt_ids).endswith("CALL calculator(7*2)<|im_end|>\n<|im_start|>tool\n14<|im_end|>\n<|im_start|>assistant\n")


async def test_reasoning_items_are_left_out_and_the_conversation_goes_on(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()
    answer = await ask(h, attempt, "a")
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    await ask(h, attempt, [{"role": "user", "content": "a"}, thought, *answer.output, {"role": "user", "content": "b"}])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)
    assert "hm" not in h.text(second.prompt_ids)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_previous_response_is_continued_by_its_id_and_by_another_gateway_too(house: Any, restart: bool) -> None:
    h = await house(["CALL calculator(3+4)", "It is 7.", "Really."])
    attempt = await h.attempt()
    more: dict[str, Any] = {"tools": [CALCULATOR], "instructions": "Solve it."}
    gateways = [h.gateway]

    async def elsewhere() -> None:
        if restart:
            h.gateway = Gateway(h.store, h.engine)
            gateways.append(h.gateway)
            await h.gateway.start()

    one = await ask(h, attempt, "3+4?", **more)
    await elsewhere()
    result = {"type": "function_call_output", "call_id": one.output[0].call_id, "output": "7"}
    two = await ask(h, attempt, [result], previous_response_id=one.id, **more)
    await elsewhere()
    three = await ask(h, attempt, "Sure?", previous_response_id=two.id, **more)
    assert (two.previous_response_id, three.previous_response_id, three.output_text) == (one.id, two.id, "Really.")
    for gateway in gateways[1:]:
        await gateway.stop()
    records = await h.records(attempt)
    first, second, third = records.completions
    assert starts(second, first)
    assert starts(third, second)
    # a call records what is new in it
    assert [(call.after, len(new_messages(call) or ())) for call in records.calls] == [
        (None, 2),  # with the instructions
        (first.call_id, 1),
        (second.call_id, 1),
    ]


async def test_other_instructions_after_a_previous_response_replace_the_earlier_ones(house: Any) -> None:
    h = await house(["one", "two", "three"])
    attempt = await h.attempt()
    one = await ask(h, attempt, "a", instructions="Old.")
    two = await ask(h, attempt, "b", instructions="New.", previous_response_id=one.id)
    await ask(h, attempt, "c", instructions="New.", previous_response_id=two.id)
    _, second, third = (await h.records(attempt)).completions
    text = h.text(second.prompt_ids)
    assert "Old." not in text
    assert text.startswith("<|im_start|>system\nNew.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\none<|im_end|>")
    assert starts(third, second)


async def test_a_response_that_was_not_stored_cannot_be_referred_to_and_is_recorded_all_the_same(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()
    one = await ask(h, attempt, "a", store=False)
    assert one.store is False
    for id in (one.id, "resp_nowhere"):
        with pytest.raises(openai.BadRequestError, match="send the whole conversation") as error:
            await ask(h, attempt, "b", previous_response_id=id)
        assert (error.value.param, error.value.code) == ("previous_response_id", "previous_response_not_found")
    again = [{"role": "user", "content": "a"}, *one.output, {"role": "user", "content": "b"}]
    await ask(h, attempt, again, store=False)
    records = await h.records(attempt)
    assert [call.status for call in records.calls] == ["completed", "refused", "refused", "completed"]
    assert starts(records.completions[1], records.completions[0])


async def test_a_reply_cut_by_its_length_is_incomplete(house: Any) -> None:
    h = await house(["hello there"] * 2)
    attempt = await h.attempt()
    answer = await ask(h, attempt, "hi", max_output_tokens=5)
    assert (answer.status, answer.incomplete_details.reason, answer.output_text) == ("incomplete", "max_output_tokens", "hello")
    events = [e async for e in await ask(h, attempt, "hi", max_output_tokens=5, stream=True)]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].status == "incomplete"
    assert [c.finish_reason for c in (await h.records(attempt)).completions] == ["length"] * 2


class Answer(BaseModel):
    value: int


async def test_a_schema_is_asked_for_and_parsed_by_the_client(house: Any) -> None:
    h = await house(['{"value": 7}'])
    attempt = await h.attempt()
    answer = await h.client(attempt).responses.parse(model="scripted", input="3+4?", text_format=Answer)
    assert answer.output_parsed == Answer(value=7)
    [completion] = (await h.records(attempt)).completions
    assert '"value"' in h.text(completion.prompt_ids)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [CALCULATOR, {"type": "file_search", "vector_store_ids": ["x"]}]}, "tools"),
        ({"tool_choice": {"type": "web_search"}, "tools": [CALCULATOR]}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x", "status": "completed"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"truncation": "half"}, "truncation"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_and_counted(house: Any, change: dict[str, Any], param: str) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError) as error:
        await ask(h, attempt, **{"input": "hi", **change})
    assert error.value.param == param
    [call] = (await h.records(attempt)).calls
    assert (call.status, call.choices) == ("refused", 0)


async def test_settings_that_no_open_model_has_means_for_are_said_once(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    with caplog.at_level("WARNING", "agentlightning.gateway"):
        for _ in range(2):
            answer = await ask(h, attempt, "hi", reasoning={"effort": "low"}, text={"verbosity": "high"}, truncation="auto")
            await h.client(attempt).chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "hi"}], reasoning_effort="low", verbosity="high"
            )
        await ask(h, attempt, "hi", reasoning={"summary": "auto"}, truncation="disabled")
    assert (answer.truncation, answer.reasoning.effort) == ("disabled", None)
    names = [r.getMessage().partition(". ")[0].removeprefix("Ignoring the agent's ") for r in caplog.records]
    assert sorted(names) == ["reasoning.effort", "reasoning.summary", "reasoning_effort", "text.verbosity", "truncation", "verbosity"]


async def test_an_error_in_the_middle_of_a_stream_is_told_as_events_and_counted(house: Any) -> None:
    h = await house(["a long reply that takes its time"], chunk=2)
    attempt = await h.attempt()
    generate = h.engine.generate

    async def breaks(prompt_ids: Any, sampling: Sampling, **rollout: Any) -> Any:
        count = 0
        async for chunk in generate(prompt_ids, sampling, **rollout):
            count += 1
            if count == 3:
                raise EngineError("the GPU fell off")
            yield chunk

    h.engine.generate = breaks
    events = [e async for e in await ask(h, attempt, "hi", stream=True)]
    assert [e.type for e in events[-2:]] == ["error", "response.failed"]
    assert "fell off" in events[-2].message
    assert "fell off" in events[-1].response.error.message
    assert [e.sequence_number for e in events] == list(range(len(events)))
    records = await h.records(attempt)
    assert [(c.status, c.choices) for c in records.calls] == [("error", 1)]
    assert [c.finish_reason for c in records.completions] == ["error"]


async def test_requests_are_counted_whatever_becomes_of_them(house: Any) -> None:
    h = await house(lambda prompt, sampling: "a long reply that takes its time", chunk=1, delay=0.01)
    attempt = await h.attempt()
    client = h.client(attempt)
    await ask(h, attempt, "hi", max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        await ask(h, attempt, "hi", model="nope")
    stream = await client.responses.create(model="scripted", input="hi", stream=True)
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {attempt.key}"}) as plain:
        assert (await plain.post(f"{h.gateway.base_url}/responses", content=b"{")).status_code == 400

    async def recorded() -> bool:
        return len((await h.records(attempt)).calls) == 4

    await eventually(recorded)
    records = await h.records(attempt)
    assert sorted(c.status for c in records.calls) == ["cancelled", "completed", "refused", "refused"]
    assert sum(c.choices for c in records.calls) == len(records.completions) == 2
