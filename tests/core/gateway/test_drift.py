"""Drift is visible: a prompt that is rendered afresh says why, and a tool call that cannot be read says what is wrong with it."""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from template_world import FLIGHTS, SEARCH, TEMPLATES, THINKING, make_tokens

from agentlightning.cli.tree import print_rollout
from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.records.accounts import account
from agentlightning.records.shown import Shown
from agentlightning.records.source import RecordsSource
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.training.metrics import step_metrics
from agentlightning.training.step_checks import StepChecks, drift_notice
from agentlightning.types import Attempt, Sampling, Trajectory
from gateway_house import House, user

NEEDS_QUERY: Any = copy.deepcopy(SEARCH)
NEEDS_QUERY["function"]["parameters"]["required"] = ["query"]


@pytest.fixture
async def template_house(tmp_path: Path) -> AsyncIterator[Any]:
    """`template_house(template, replies, **settings)`: a gateway over a model with this template, and these replies."""
    async with AsyncExitStack() as stack:

        async def start(template: str, replies: list[str], **settings: Any) -> House:
            make_tokens(tmp_path / "model", template)
            answers = iter(replies)
            engine = ScriptedEngine(tmp_path / "model", lambda prompt, sampling: next(answers))
            house = House(engine, stack, rendering=RenderingSettings(**settings))
            await house.gateway.start()
            stack.push_async_callback(house.gateway.stop)
            return house

        yield start


async def converse(house: House, attempt: Attempt, turns: int, **more: Any) -> None:
    """Ask, send the reply back as it came, and ask again."""
    client, messages = house.client(attempt), list[Any]()
    for turn in range(turns):
        messages.append(user(f"question {turn}"))
        answer = await client.chat.completions.create(model="scripted", messages=messages, **more)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})


async def ended(house: House, attempt: Attempt) -> tuple[RolloutState, Any, Trajectory]:
    await house.store.finish(attempt.id, "succeeded")
    store: LightningStore = house.store
    state, records = await store.read(attempt.rollout_id)
    return state, records, trajectory(state, records)


async def test_a_template_that_drops_reasoning_is_named_counted_and_warned_of_once(template_house: Any) -> None:
    house = await template_house(THINKING, ["<think>\nhm\n</think>\n\nyes"] * 4)
    attempt = await house.attempt(Sampling())
    await converse(house, attempt, 3)
    state, records, read = await ended(house, attempt)
    assert [call.context for call in records[0].calls] == ["first", "rewritten: thinking", "rewritten: thinking"]
    assert read.contexts == {"first": 1, "rewritten: thinking": 2}
    batch = make_batch([read], [np.ones(len(read.transitions))])
    row = {"step": 3, **step_metrics([read], batch)}
    assert {key: value for key, value in row.items() if key.startswith("context.")} == {"context.first": 1, "context.rewritten": 2}
    checks = StepChecks(None, 1.0, Path("run"))
    [notice] = [text for text in checks.notices(row, [read]) if "sampled tokens" in text]
    assert notice.startswith("Step 3: 2 of 2 continuing model calls do not start with the sampled tokens")
    assert "The commonest cause: rewritten: thinking." in notice
    assert 'Set history = "exact"' in notice
    assert not [text for text in checks.notices(row, [read]) if "sampled tokens" in text]
    assert "3 prompts = 2 rewritten: thinking + 1 first" in shown(state, records, read)


async def test_with_exact_history_the_same_conversation_is_bridged_and_nothing_is_said(template_house: Any) -> None:
    house = await template_house(THINKING, ["<think>\nhm\n</think>\n\nyes"] * 4, history="exact")
    attempt = await house.attempt(Sampling())
    await converse(house, attempt, 3)
    *_, read = await ended(house, attempt)
    assert read.contexts == {"first": 1, "bridged": 2}
    assert drift_notice(1, [read]) is None


def test_a_tenth_of_the_continuing_calls_may_start_afresh() -> None:
    def step(**contexts: int) -> list[Trajectory]:
        names = {name.replace("_", " "): count for name, count in contexts.items()}
        return [
            Trajectory(
                task=None, rollout_id="r", attempt_id="a", group="g", index=0, mode="train", status="succeeded", reward=1.0, contexts=names
            )  # type: ignore[arg-type]
        ]

    assert drift_notice(1, step(first=5)) is None
    assert drift_notice(1, step(first=90, bridged=9, edited=1)) is None
    assert "2 of 11" in str(drift_notice(1, step(bridged=9, edited=1, tools_changed=1)))
    assert "other tools" in str(drift_notice(1, step(bridged=9, edited=1, tools_changed=2)))


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ('<tool_call>\n{"name": "search", "arguments": {"query": }\n</tool_call>', "the tool call is not JSON"),
        ('<tool_call>\n{"name": "serch", "arguments": {}}\n</tool_call>', "the tool call has name 'serch', and the request offers search"),
        ('So: ```json\n{"name": "search", "arguments": {"query": "x"}}\n```', "the JSON of a call of search lacks the mark '<tool_call>'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_tool_call_stays_text_and_the_developer_reads_why(
    template_house: Any, reply: str, problem: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    house = await template_house(TEMPLATES["hermes"], [reply, reply, "fine"])
    attempt = await house.attempt(Sampling())
    client = house.client(attempt)
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for _ in range(3):
            answer = await client.chat.completions.create(model="scripted", messages=[user("q")], tools=[SEARCH], stream=stream)
            if stream:
                assert not [chunk async for chunk in answer if chunk.choices and chunk.choices[0].delta.tool_calls]
            else:
                assert answer.choices[0].message.tool_calls is None
    [warning] = [text for text in caplog.messages if "looks like a tool call" in text]
    assert problem in warning
    state, records, read = await ended(house, attempt)
    assert [completion.problem is None for completion in records[0].completions] == [False, False, True]
    assert records[0].completions[0].message["content"] == reply
    assert step_metrics([read], make_batch([read], [np.ones(3)]))["broken_calls"] == 2
    text = shown(state, records, read)
    assert text.count(f"broken tool call: {problem}") == 2
    assert "2 replies have a tool call that cannot be read" in text


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
@pytest.mark.parametrize("choice", ["required", "named"])
async def test_tool_choice_begins_a_call_in_every_format_and_warns_if_its_arguments_are_broken(
    template_house: Any, kind: str, choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = await template_house(TEMPLATES[kind], ["no arguments at all"])
    attempt = await house.attempt(Sampling())
    wanted: Any = "required" if choice == "required" else {"type": "function", "function": {"name": "search"}}
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        answer = await house.client(attempt).chat.completions.create(
            model="scripted", messages=[user("q")], tools=[FLIGHTS, SEARCH], tool_choice=wanted
        )
    assert answer.choices[0].message.content == "no arguments at all"
    assert [text for text in caplog.messages if "nothing forces its arguments" in text]
    records = await house.records(attempt)
    assert records.completions[0].problem
    assert choice == "required" or "search" in house.text(records.completions[0].prompt_ids)[-60:]


async def test_a_forced_call_that_can_be_read_says_nothing(template_house: Any, caplog: pytest.LogCaptureFixture) -> None:
    house = await template_house(TEMPLATES["hermes"], ['query": "x"}}\n</tool_call>'])
    attempt = await house.attempt(Sampling())
    answer = await house.client(attempt).chat.completions.create(
        model="scripted", messages=[user("q")], tools=[NEEDS_QUERY], tool_choice={"type": "function", "function": {"name": "search"}}
    )
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"query": "x"}'
    [completion] = (await house.records(attempt)).completions
    assert house.text(completion.prompt_ids).endswith('"arguments": {"')
    assert completion.problem is None
    assert not [text for text in caplog.messages if "tool call" in text]


async def test_the_template_s_settings_of_a_request_reach_the_prompt(template_house: Any) -> None:
    template = "{{ mood or '' }}" + TEMPLATES["hermes"]
    house = await template_house(template, ["yes", " 7."])
    attempt = await house.attempt(Sampling())
    client = house.client(attempt)
    await client.chat.completions.create(model="scripted", messages=[user("q")], extra_body={"chat_template_kwargs": {"mood": "calm"}})
    begun: Any = [user("q"), {"role": "assistant", "content": "The answer is"}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    await client.chat.completions.create(model="scripted", messages=begun, extra_body=fields)
    first, second = (house.text(completion.prompt_ids) for completion in (await house.records(attempt)).completions)
    assert first == "calm<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert second == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nThe answer is"


def shown(state: RolloutState, records: Any, read: Trajectory) -> str:
    """What `agl show RUN ROLLOUT` prints."""
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_rollout(
        Shown(state, records, read, None, None, account(state, records, read, None)), RecordsSource("memory:"), console, tokens=False
    )
    return console.export_text()
