"""Single calls: plain and streaming, what is honoured, what is refused, what is recorded."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from agentlightning.capture.recorder import CALL_HEADER, KEY_HEADER
from agentlightning.errors import GatewayError
from agentlightning.gateway import Gateway
from agentlightning.gateway.sampling import call_seed
from agentlightning.stores.common import open_store
from agentlightning.types import Rollout, Sampling, Task
from gateway_house import CALCULATOR, SEARCH, eventually, user

HI = [user("hi")]


async def collect(stream: Any) -> tuple[str, list[Any]]:
    chunks = [chunk async for chunk in stream]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


async def test_a_plain_call_is_answered_and_recorded_exactly(house: Any) -> None:
    h = await house(["héllo 😀"])
    attempt = await h.attempt(Sampling(temperature=0.7, max_tokens=40))
    raw = await h.client(attempt).chat.completions.with_raw_response.create(model="scripted", messages=HI)
    answer = raw.parse()
    records = await h.records(attempt)
    [call], [completion] = records.calls, records.completions
    assert answer.choices[0].message.content == "héllo 😀"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(completion.response_ids)
    assert answer.system_fingerprint == raw.headers[CALL_HEADER] == call.id == completion.call_id
    assert "prompt_token_ids" not in answer.model_extra
    assert h.text(completion.prompt_ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert h.text(completion.response_ids) == "héllo 😀<|im_end|>"
    assert completion.logprobs is not None
    assert (completion.renderer, completion.continues, completion.finish_reason) == ("template", None, "stop")
    assert len(completion.tokenizer) == 16
    assert (call.status, call.choices, call.index, call.context) == ("completed", 1, 0, "first")
    assert (completion.sampling.temperature, completion.sampling.max_tokens, completion.sampling.stop_ids) == (0.7, 40, (2,))
    assert np.array_equal(completion.versions, np.zeros(len(completion.response_ids), np.int32))


async def test_the_synchronous_client_gets_the_same(house: Any) -> None:
    h = await house(["one", "two"])
    attempt = await h.attempt()

    def work() -> tuple[str, str]:
        with openai.OpenAI(base_url=h.gateway.base_url, api_key=attempt.key) as client:
            plain = client.chat.completions.create(model="scripted", messages=HI)
            stream = client.chat.completions.create(model="scripted", messages=HI, stream=True)
            return plain.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(work) == ("one", "two")


@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_streaming_never_breaks_a_character_and_ends_with_the_usage(house: Any, chunk: int) -> None:
    h = await house(lambda prompt, sampling: "wörld 😀é!", chunk=chunk)
    attempt = await h.attempt()
    stream = await h.client(attempt).chat.completions.create(
        model="scripted", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    text, chunks = await collect(stream)
    [call] = (await h.records(attempt)).calls
    assert text == "wörld 😀é!"
    assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in chunks if c.choices)
    assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 15
    assert all(c.usage is None for c in chunks[:-1])
    assert {c.system_fingerprint for c in chunks} == {call.id}
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_everything_is_recorded_before_the_last_byte_leaves(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    async for chunk in await h.client(attempt).chat.completions.create(model="scripted", messages=HI, stream=True):
        if chunk.choices[0].finish_reason:
            assert len((await h.records(attempt)).completions) == 1


async def test_n_choices_are_n_generations_with_seeds_of_their_own(house: Any) -> None:
    h = await house(lambda prompt, sampling: f"seed {sampling.seed}", delay=0.02)
    rollout = Rollout(task=Task("t", None), mode="train", seed=7, step=3, index=2, sampling=Sampling())
    attempt = await h.store.begin(rollout, "test", lease=60)
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=HI, n=3)
    assert [c.message.content for c in answer.choices] == [f"seed {call_seed(rollout, 0, i)}" for i in range(3)]
    records = await h.records(attempt)
    assert [(c.choice, c.sampling.seed) for c in records.completions] == [(i, call_seed(rollout, 0, i)) for i in range(3)]
    assert records.calls[0].choices == 3
    assert len({c.sampling.seed for c in records.completions}) == 3
    text, _ = await collect(await h.client(attempt).chat.completions.create(model="scripted", messages=HI, n=2, stream=True))
    assert f"seed {call_seed(rollout, 1, 0)}"[:6] in text


async def test_the_rollout_decides_the_sampling_and_says_so_once(house: Any, caplog: pytest.LogCaptureFixture) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt(Sampling(temperature=0.9, top_p=1.0, max_tokens=30))
    client = h.client(attempt)
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for limit in (4, 64):
            await client.chat.completions.create(
                model="scripted", messages=HI, temperature=0.1, top_p=0.5, seed=1, presence_penalty=1, max_tokens=limit, stop=["X"]
            )
    samplings = [c.sampling for c in (await h.records(attempt)).completions]
    assert [(s.temperature, s.top_p, s.max_tokens, s.stop) for s in samplings] == [(0.9, 1.0, 4, ("X",)), (0.9, 1.0, 30, ("X",))]
    assert samplings[0].seed not in (1, samplings[1].seed)
    warnings = [r.getMessage() for r in caplog.records if "Ignoring the agent's" in r.getMessage()]
    assert len(warnings) == 1
    assert "presence_penalty" in warnings[0]


async def test_in_production_the_agents_own_settings_hold(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.store.begin(Rollout(task=Task("t", None), mode="production"), "test", lease=60)
    client = h.client(attempt)
    await client.chat.completions.create(model="scripted", messages=HI, temperature=0.1, top_p=0.5, seed=11, max_completion_tokens=5)
    [completion] = (await h.records(attempt)).completions
    s = completion.sampling
    assert (s.temperature, s.top_p, s.seed, s.max_tokens) == (0.1, 0.5, 11, 5)
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        await client.chat.completions.create(model="scripted", messages=HI, presence_penalty=1)


async def test_a_reply_cut_by_its_length_says_so(house: Any) -> None:
    h = await house(["hello there"])
    attempt = await h.attempt()
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=HI, max_tokens=5)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("length", "hello")
    assert (await h.records(attempt)).completions[0].finish_reason == "length"


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_across_chunks_is_sampled_and_hidden(house: Any, chunk: int, stream: bool) -> None:
    h = await house(["abcOb Obs:def"], chunk=chunk)
    attempt = await h.attempt()
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=HI, stop=["Obs:", "zz"], stream=stream)
    text = (await collect(answer))[0] if stream else answer.choices[0].message.content
    [completion] = (await h.records(attempt)).completions
    assert text == "abcOb "
    assert h.text(completion.response_ids) == "abcOb Obs:"
    assert (completion.finish_reason, completion.message["content"]) == ("stop", "abcOb ")


async def test_logprobs_and_token_ids_come_when_asked_for(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hey")
    attempt = await h.attempt()
    client = h.client(attempt)
    extra = {"return_token_ids": True}
    answer = await client.chat.completions.create(model="scripted", messages=HI, logprobs=True, extra_body=extra)
    [completion] = (await h.records(attempt)).completions
    assert [t.token for t in answer.choices[0].logprobs.content] == ["h", "e", "y", "<|im_end|>"]
    assert [t.logprob for t in answer.choices[0].logprobs.content] == pytest.approx(completion.logprobs)
    assert answer.model_extra["prompt_token_ids"] == completion.prompt_ids.tolist()
    assert answer.choices[0].model_extra["token_ids"] == completion.response_ids.tolist()
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True, logprobs=True, extra_body=extra)
    _, chunks = await collect(stream)
    ids = [i for c in chunks for i in c.choices[0].model_extra.get("token_ids", [])]
    assert ids == completion.response_ids.tolist()
    assert [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content] == ["h", "e", "y", "<|im_end|>"]
    plain = await client.chat.completions.create(model="scripted", messages=HI, logprobs=True)
    assert [t.token for t in plain.choices[0].logprobs.content] == ["h", "e", "y"]


@pytest.mark.parametrize("chunk", [1, 4, 100])
async def test_tool_calls_are_parsed_plain_and_streaming(house: Any, chunk: int) -> None:
    h = await house(lambda prompt, sampling: 'So CALL it.\n\nCALL calculator(3+4)\nCALL search({"query": "x"})', chunk=chunk)
    attempt = await h.attempt()
    client = h.client(attempt)
    ask: dict[str, Any] = {"model": "scripted", "messages": HI, "tools": [CALCULATOR, SEARCH]}
    plain = (await client.chat.completions.create(**ask)).choices[0]
    assert plain.finish_reason == "tool_calls"
    assert plain.message.content == "So CALL it."
    expected = [("calculator", {"expression": "3+4"}), ("search", {"query": "x"})]
    assert [(c.function.name, json.loads(c.function.arguments)) for c in plain.message.tool_calls] == expected
    text, chunks = await collect(await client.chat.completions.create(**ask, stream=True))
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert text == "So CALL it."
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == expected
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert [c.finish_reason for c in (await h.records(attempt)).completions] == ["tool_calls"] * 2
    single = (await client.chat.completions.create(**ask, parallel_tool_calls=False)).choices[0]
    assert len(single.message.tool_calls) == 1
    none = (await client.chat.completions.create(**ask, tool_choice="none")).choices[0]
    assert none.message.tool_calls is None
    assert "CALL search" in none.message.content


async def test_a_named_tool_is_forced_by_the_prompt(house: Any) -> None:
    h = await house(["3+4", '{"query": "x", "limit": 2}'])
    attempt = await h.attempt()
    client = h.client(attempt)
    named = {"type": "function", "function": {"name": "calculator"}}
    answer = await client.chat.completions.create(model="scripted", messages=HI, tools=[CALCULATOR, SEARCH], tool_choice=named)
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("calculator", {"expression": "3+4"})
    assert h.engine.asked[0].prompt.endswith("assistant\nCALL calculator(")
    answer = await client.chat.completions.create(model="scripted", messages=HI, tools=[SEARCH], tool_choice="required")
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"query": "x", "limit": 2}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CALCULATOR], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"n": 0}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_in_openais_form(house: Any, change: dict[str, Any], param: str) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError) as error:
        await h.client(attempt).chat.completions.create(**{"model": "scripted", "messages": HI, **change})
    assert (error.value.type, error.value.param) == ("invalid_request_error", param)
    [call] = (await h.records(attempt)).calls
    assert (call.status, call.choices) == ("refused", 0)
    assert call.detail


async def test_a_body_that_is_not_json_is_refused_and_counted(house: Any) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"Authorization": f"Bearer {attempt.key}"}) as client:
        answer = await client.post("/chat/completions", content=b"{nope")
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]["message"]
    assert [c.status for c in (await h.records(attempt)).calls] == ["refused"]


async def test_a_name_that_stands_for_the_model_is_answered_and_others_are_not(house: Any) -> None:
    h = await house(["x"], options={"models": ["gpt-4o*"]})
    attempt = await h.attempt()
    client = h.client(attempt)
    answer = await client.chat.completions.create(model="gpt-4o-mini", messages=HI)
    assert (answer.model, answer.choices[0].message.content) == ("scripted", "x")
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
    with pytest.raises(openai.NotFoundError, match=r"models = \['gpt-5'\]"):
        await client.chat.completions.create(model="gpt-5", messages=HI)


async def test_an_unknown_model_is_404_and_the_known_one_is_listed(house: Any) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    client = h.client(attempt)
    with pytest.raises(openai.NotFoundError, match="scripted") as error:
        await client.chat.completions.create(model="gpt-4o", messages=HI)
    assert error.value.code == "model_not_found"
    assert "'main'" in str(error.value)
    assert [m.id async for m in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).owned_by == "agentlightning"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other/one")
    with pytest.raises(openai.NotFoundError, match=r"does not serve POST /v1/embeddings.*/v1/responses"):
        await client.embeddings.create(model="scripted", input="x")
    async with httpx.AsyncClient() as plain:
        assert (await plain.get(h.gateway.base_url.replace("/v1", "/healthz"))).json()["status"] == "ok"


async def test_the_name_of_the_policy_is_accepted_as_the_model(house: Any) -> None:
    h = await house(["hello"])
    attempt = await h.attempt()
    client = h.client(attempt)
    answer = await client.chat.completions.create(model="main", messages=HI)
    assert (answer.choices[0].message.content, answer.model) == ("hello", "scripted")
    assert (await client.models.retrieve("main")).id == "main"


async def test_a_prompt_longer_than_the_context_names_both(house: Any) -> None:
    h = await house(["x"], context_length=30)
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError, match="30 tokens, and the prompt has 119") as error:
        await h.client(attempt).chat.completions.create(model="scripted", messages=[user("a" * 100)])
    assert error.value.code == "context_length_exceeded"
    assert [c.status for c in (await h.records(attempt)).calls] == ["refused"]


async def test_the_header_names_the_attempt_where_the_key_is_foreign(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    first, second = await h.attempt(), await h.attempt()
    client = h.client("sk-foreign")
    for attempt in (first, second):
        await client.chat.completions.create(model="scripted", messages=HI, extra_headers={KEY_HEADER: attempt.key})
    both = h.client(first)  # an attempt's own key wins over the header
    await both.chat.completions.create(model="scripted", messages=HI, extra_headers={KEY_HEADER: second.key})
    assert [len((await h.records(a)).calls) for a in (first, second)] == [2, 1]


async def test_a_call_of_nobody_is_401_and_names_the_three_ways(house: Any) -> None:
    h = await house(["x"])
    with pytest.raises(openai.AuthenticationError) as error:
        await h.client("sk-foreign").chat.completions.create(model="scripted", messages=HI)
    for way in ("API key", KEY_HEADER, "OPENAI_BASE_URL and OPENAI_API_KEY"):
        assert way in str(error.value)


async def test_a_closed_attempt_is_401_and_counted(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    await h.store.finish(attempt.id, "succeeded")
    with pytest.raises(openai.AuthenticationError, match=r"closed \(succeeded\)"):
        await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    assert [(c.index, c.status) for c in (await h.records(attempt)).calls] == [(0, "completed"), (1, "refused")]


async def test_a_call_with_the_servers_token_becomes_a_production_rollout(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello", options={"token": "secret"})
    await h.client("secret").chat.completions.create(model="scripted", messages=HI, temperature=0.3)
    with pytest.raises(openai.BadRequestError):
        await h.client("secret").chat.completions.create(model="scripted", messages=[])

    async def ended() -> bool:
        states, _ = await h.store.list(mode="production")
        return [s.status for s in states] == ["succeeded", "failed"]

    await eventually(ended)
    states, _ = await h.store.list(mode="production")
    records = await h.store.records(states[0].attempts[0].id)
    assert records.completions[0].sampling.temperature == 0.3
    assert states[0].rollout.task.input == {"messages": HI}


async def test_a_call_id_that_the_client_brings_is_used_once(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    attempt = await h.attempt()
    client = h.client(attempt)
    answers = [await client.chat.completions.create(model="scripted", messages=HI, extra_headers={CALL_HEADER: "run-1"}) for _ in range(2)]
    calls = (await h.records(attempt)).calls
    assert [a.system_fingerprint for a in answers] == [c.id for c in calls]
    assert calls[0].id == "run-1"
    assert calls[1].id != "run-1"


async def test_one_call_id_in_several_attempts_loses_no_record_and_the_answers_name_the_actual_one(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x", options={"token": "secret"})
    attempts, ids = [await h.attempt() for _ in range(3)], set[str]()
    for attempt in attempts:
        client = h.client(attempt, default_headers={CALL_HEADER: "my-agent"})
        raw = await client.chat.completions.with_raw_response.create(model="scripted", messages=HI)
        [call], [completion] = (records := await h.records(attempt)).calls, records.completions
        assert raw.headers[CALL_HEADER] == raw.parse().system_fingerprint == call.id == completion.call_id
        ids.add(call.id)
    assert len(ids) == 3
    assert (await h.records(attempts[0])).calls[0].id == "my-agent"
    production = h.client("secret", default_headers={CALL_HEADER: "my-agent"})
    answers = [await production.chat.completions.create(model="scripted", messages=HI) for _ in range(2)]
    assert len({answer.system_fingerprint for answer in answers} - ids) == 2


async def test_a_port_in_use_names_the_port_and_the_way_out(house: Any) -> None:
    h = await house(["x"])
    port = int(h.gateway.base_url.split(":")[-1].split("/")[0])
    with pytest.raises(GatewayError, match=rf"{port}.*choose another, or 0"):
        await Gateway(open_store("memory:"), h.engine, port=port).start()


async def test_an_address_that_is_not_ours_is_not_blamed_on_the_port(house: Any) -> None:
    h = await house(["x"])
    with pytest.raises(GatewayError, match=r"192\.0\.2\.1") as error:
        await Gateway(open_store("memory:"), h.engine, host="192.0.2.1").start()
    assert "Another program" not in str(error.value)


async def test_a_tokenizer_that_is_not_there_is_an_error_with_the_folder(house: Any, tmp_path: Any) -> None:
    h = await house(["x"])
    object.__setattr__(h.engine.info, "path", str(tmp_path))
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError, match="tokenizer"):
        await h.client(attempt).chat.completions.create(model="scripted", messages=HI)
    assert [c.status for c in (await h.records(attempt)).calls] == ["refused"]
