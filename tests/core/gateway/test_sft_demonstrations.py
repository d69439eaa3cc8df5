"""Demonstrations through the gateway: the agent reads them, and what is recorded are the tokens that the model would have written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openai
import pytest

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.rl.batch.build import DEMONSTRATED, make_batch
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.types import Sampling, Task
from gateway_house import CALCULATOR, user

CALL = {"function": {"name": "calculator", "arguments": json.dumps({"expression": "3+4"})}}


def says(content: str | None = None, *calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}


def never(prompt: str, sampling: Sampling) -> str:
    raise AssertionError("the engine was asked")


async def ask(house: Any, attempt: Any, messages: list[Any], **more: Any) -> Any:
    return await house.client(attempt).chat.completions.create(model="scripted", messages=messages, **more)


async def test_the_agent_reads_the_demonstration_and_its_exact_tokens_are_recorded(house):
    at = await house(never, options={"demonstrate": lambda task, messages, tools: says("the answer is 7")})
    attempt = await at.attempt()
    answer = await ask(at, attempt, [user("3+4?")])
    assert answer.choices[0].message.content == "the answer is 7"
    assert answer.choices[0].finish_reason == "stop"
    [made] = (await at.records(attempt)).completions
    assert made.demonstrated
    assert made.logprobs is None
    assert set(made.versions.tolist()) == {-1}
    assert at.text(made.response_ids) == "the answer is 7<|im_end|>"
    assert made.response_ids.tolist()[:-1] == at.engine.tokenizer.encode("the answer is 7"), "the model's own tokens, merges included"
    assert len(made.versions) == len(made.response_ids)


async def test_a_demonstration_is_asked_with_the_task_and_the_request_as_the_gateway_saw_them(house):
    seen: list[Any] = []

    def demonstrate(task: Any, messages: Any, tools: Any) -> Any:
        seen.append((dict(task), [message["content"] for message in messages], [tool["function"]["name"] for tool in tools]))
        messages.clear()  # must change nothing
        task["n"] = 2
        return says("yes")

    at = await house(never, options={"demonstrate": demonstrate})
    attempt = await at.attempt(task=Task("t", {"n": 1}))
    await ask(at, attempt, [{"role": "system", "content": "be good"}, user("well?")], tools=[CALCULATOR])
    await ask(at, attempt, [user("and?")])
    assert seen == [({"n": 1}, ["be good", "well?"], ["calculator"]), ({"n": 1}, ["and?"], [])]
    assert "well?" in at.text((await at.records(attempt)).completions[0].prompt_ids)


async def test_a_demonstrated_tool_call_is_written_as_the_model_would_and_the_next_turn_goes_on_from_its_tokens(house):
    def demonstrate(task: Any, messages: Any, tools: Any) -> Any:
        return says("it is 7") if messages[-1]["role"] == "tool" else says(None, CALL)

    at = await house(never, options={"demonstrate": demonstrate})
    attempt = await at.attempt()
    answer = await ask(at, attempt, [user("3+4?")], tools=[CALCULATOR])
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("calculator", {"expression": "3+4"})
    history = [user("3+4?"), answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "7"}]
    await ask(at, attempt, history, tools=[CALCULATOR])
    first, second = (await at.records(attempt)).completions
    assert at.text(first.response_ids) == "CALL calculator(3+4)<|im_end|>"
    assert first.finish_reason == "tool_calls"
    assert second.continues == first.id
    start = [*first.prompt_ids.tolist(), *first.response_ids.tolist()]
    assert second.prompt_ids.tolist()[: len(start)] == start


async def test_a_forced_tool_call_is_demonstrated_from_where_the_prompt_leaves_off(house):
    at = await house(never, options={"demonstrate": lambda *_: says(None, CALL)})
    attempt = await at.attempt()
    answer = await ask(at, attempt, [user("3+4?")], tools=[CALCULATOR], tool_choice="required")
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"expression": "3+4"}
    [made] = (await at.records(attempt)).completions
    assert at.text(made.prompt_ids).endswith("CALL calculator(")
    assert at.text(made.response_ids) == "3+4)<|im_end|>"


async def test_streamed_demonstrations_are_the_same(house):
    at = await house(never, options={"demonstrate": lambda *_: says("one two three")})
    attempt = await at.attempt()
    stream = await ask(at, attempt, [user("count")], stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == "one two three"
    assert (await at.records(attempt)).completions[0].demonstrated


async def test_a_renderer_of_the_library_writes_the_demonstration_with_its_own_template(house):
    at = await house(never, options={"demonstrate": lambda *_: says("fine"), "rendering": RenderingSettings("default")})
    attempt = await at.attempt()
    await ask(at, attempt, [user("how?")])
    [made] = (await at.records(attempt)).completions
    assert made.renderer == "default"
    assert at.text(made.response_ids) == "fine<|im_end|>"


async def test_without_a_demonstration_and_outside_training_replies_are_sampled(house):
    at = await house(
        ["sampled", "sampled"], options={"demonstrate": lambda task, messages, tools: says("no") if "yes" in str(messages) else None}
    )
    train, val = await at.attempt(), await at.attempt(mode="eval")
    assert (await ask(at, train, [user("a")])).choices[0].message.content == "sampled"
    assert (await ask(at, val, [user("yes")])).choices[0].message.content == "sampled"
    for attempt in (train, val):
        [made] = (await at.records(attempt)).completions
        assert not made.demonstrated
        assert made.logprobs is not None


async def test_a_demonstration_is_scored_by_the_models_own_distribution_whatever_the_sampling(house):
    at = await house(never, options={"demonstrate": lambda *_: says("x")})
    attempt = await at.attempt(Sampling(temperature=0.5, top_p=0.9))
    await ask(at, attempt, [user("?")])
    [made] = (await at.records(attempt)).completions
    assert (made.sampling.temperature, made.sampling.top_p) == (1.0, 1.0)


def breaks(*_: Any) -> Any:
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("demonstrate", "why"),
    [
        (breaks, "it raised KeyError: 'gold'"),
        (lambda *_: "text", "it is a str, not an assistant message"),
        (lambda *_: {"role": "user", "content": "x"}, "its role is 'user'"),
        (lambda *_: says(""), "neither content nor tool calls"),
        (
            lambda *_: says(None, {"function": {"name": "launch", "arguments": {}}}),
            "the tool 'launch', and the request offers calculator",
        ),
        (lambda *_: says(None, {"name": "calculator"}), "its tool call 0 is {'name': 'calculator'}, not"),
        (lambda *_: says("a" * 60), "it has 61 tokens, and the limit is 32"),
        (lambda *_: says("ends<|im_end|>early"), "it has an end mark"),
        (lambda *_: says("CALL calculator(x)"), "the agent would read it as '' with the calls"),
    ],
)
async def test_what_cannot_be_a_reply_is_refused_with_the_reason_and_recorded_as_such(house, demonstrate: Any, why: str):
    at = await house(never, options={"demonstrate": demonstrate})
    attempt = await at.attempt(Sampling(max_tokens=32))
    with pytest.raises(openai.BadRequestError, match=r"The demonstration for task .* is not usable") as raised:
        await ask(at, attempt, [user("?")], tools=[CALCULATOR])
    assert why in str(raised.value)
    records = await at.records(attempt)
    assert [call.status for call in records.calls] == ["refused"]
    assert not records.completions


async def test_a_demonstration_never_enters_a_ratio_and_a_sample_never_the_imitation(house):
    def demonstrate(task: Any, messages: Any, tools: Any) -> Any:
        return says("shown") if len(messages) == 1 else None

    at = await house(["sampled"], options={"demonstrate": demonstrate})
    attempt = await at.attempt()
    first = await ask(at, attempt, [user("a")])
    await ask(at, attempt, [user("a"), first.choices[0].message, user("b")])
    await at.store.finish(attempt.id, "succeeded")
    made = trajectory(*await at.store.read(attempt.rollout_id))
    assert [each.demonstrated for each in made.transitions] == [True, False]
    assert all(each.trained for each in made.transitions)
    shown, sampled = (len(each.response_ids) for each in made.transitions)
    ratio = make_batch([made], [[1.0, 1.0]])
    assert ratio.trained_tokens == sampled
    assert [(left.tokens, left.reason) for left in ratio.untrained] == [(shown, DEMONSTRATED)]
    imitation = make_batch([made], [[1.0, 1.0]], demonstrations=True, loss_aggregation="token_mean")
    assert imitation.trained_tokens == shown
    assert [(left.tokens, left.reason) for left in imitation.untrained] == [(sampled, "sampled, not demonstrated")]
    trained = imitation.trained
    assert imitation.token_ids[trained].tolist() == made.transitions[0].response_ids.tolist()
    assert np.isnan(imitation.rollout_logprobs).all()
    assert (imitation.version == -1).all()
    assert imitation.weight[trained].tolist() == [1 / shown] * shown


async def test_agents_that_are_not_selected_are_not_imitated(house):
    at = await house(never, options={"demonstrate": lambda *_: says("shown")})
    attempt = await at.attempt()
    await ask(at, attempt, [user("a")])
    await at.store.finish(attempt.id, "succeeded")
    made = trajectory(*await at.store.read(attempt.rollout_id), agents=["writer"])
    assert not made.transitions[0].trained
    assert not make_batch([made], [[1.0]], demonstrations=True).trained_tokens
