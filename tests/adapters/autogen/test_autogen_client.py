"""The client that records its own calls, programs that are loaded from component configurations, and calls that cannot be joined."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import autogen_programs as programs
import openai
import pytest
from adapter_world import World, named, tree
from autogen_agentchat.agents import AssistantAgent, BaseChatAgent
from autogen_agentchat.base import ChatAgent, Response, Team
from autogen_agentchat.messages import TextMessage
from autogen_agentchat.teams import BaseGroupChat, MagenticOneGroupChat, RoundRobinGroupChat
from autogen_core import (
    AgentId,
    BaseAgent,
    CancellationToken,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    message_handler,
)
from autogen_core.models import ChatCompletionClient, CreateResult, RequestUsage, UserMessage
from autogen_core.tools import BaseTool, FunctionTool, Workbench
from autogen_ext.models.cache import ChatCompletionCache
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient
from autogen_world import asked, chat, planned

import agentlightning as agl
from agentlightning.capture.clients import clients
from agentlightning.rl.trajectory.build import check_joins, trajectory
from agentlightning.types import Sampling
from agentlightning_autogen import LightningChatCompletionClient, current_span_id, install, uninstall
from agentlightning_autogen import structure as structure_module


async def unjoined(world: World, recorder: Any) -> list[str]:
    return [span.attributes["unjoined"] for span in await world.spans(recorder, "llm") if span.call_id is None]


def wrapped(plan: str = "hello", **settings: Any) -> AssistantAgent:
    client = LightningChatCompletionClient(programs.MODEL)
    return AssistantAgent("solver", client, system_message=f"plan: {plan}", **settings)


class TestWrapper:
    async def test_its_calls_are_the_rollouts_whatever_model_it_names_and_other_clients_are_left_alone(self, world: World) -> None:
        install(models=["gpt-4o-mini"])
        uninstall()  # what was recorded everywhere is so no more
        other = OpenAIChatCompletionClient(model="gpt-4o-mini", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
        async with world.rollout() as recorder:
            await wrapped("CALL double(3) | six", tools=[programs.double], reflect_on_tool_use=True).run(task="question")
            with pytest.raises(openai.APIConnectionError):
                await other.create(asked())
            assert [span.agent for span in await world.joined(recorder, 2)] == ["solver", "solver"]
            assert tree(await world.spans(recorder))["solver"] == ["gpt-4o-mini", "double", "gpt-4o-mini"]

    async def test_it_streams_what_the_client_inside_streams(self, world: World) -> None:
        client = LightningChatCompletionClient(programs.MODEL)
        async with world.rollout() as recorder:
            items = [item async for item in client.create_stream(asked("plan: one two three four five"))]
            await world.joined(recorder, 1)
        assert isinstance(items[-1], CreateResult)
        assert "".join(str(item) for item in items[:-1]) == items[-1].content == "one two three four five"
        assert len(items) > 2

    async def test_every_member_is_that_of_the_client_inside(self) -> None:
        inner = ReplayChatCompletionClient(["one", "two"])
        client = LightningChatCompletionClient(inner)
        assert (await client.create(asked())).content == "one"
        assert client.total_usage() == inner.total_usage() != RequestUsage(prompt_tokens=0, completion_tokens=0)
        assert client.actual_usage() == inner.actual_usage()
        assert client.model_info == inner.model_info
        assert client.count_tokens(asked()) == inner.count_tokens(asked())
        assert client.remaining_tokens(asked()) == inner.remaining_tokens(asked())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert client.capabilities == inner.capabilities
        await client.close()

    async def test_arguments_reach_the_client_inside(self) -> None:
        seen: list[Any] = []

        class Inner(ReplayChatCompletionClient):
            async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
                seen.append((messages, kwargs))
                return await super().create(messages)

        given: Any = {
            "tools": [FunctionTool(programs.double, "Doubles.")], "tool_choice": "required", "json_output": True,
            "extra_create_args": {"temperature": 0.5}, "cancellation_token": CancellationToken(),
        }  # fmt: skip
        await LightningChatCompletionClient(Inner(["x"])).create(messages := asked(), **given)
        assert seen == [(messages, given)]

    async def test_it_goes_through_a_component_configuration_with_no_store_in_it(self, world: World) -> None:
        client = LightningChatCompletionClient(programs.MODEL)
        dumped = json.loads(client.dump_component().model_dump_json())
        assert dumped["provider"] == "agentlightning_autogen.LightningChatCompletionClient"
        assert dumped["config"]["client"]["provider"] == "autogen_ext.models.openai.OpenAIChatCompletionClient"
        assert list(dumped["config"]) == ["client"]
        loaded = ChatCompletionClient.load_component({**dumped, "config": _with_key(dumped["config"])})
        assert isinstance(loaded, LightningChatCompletionClient)
        async with world.rollout() as recorder:
            await loaded.create(asked("plan: hi"))
            await world.joined(recorder, 1)
        agent = AssistantAgent("solver", client).dump_component()
        assert agent.config["model_client"]["provider"] == "agentlightning_autogen.LightningChatCompletionClient"

    async def test_a_cache_inside_answers_without_a_call_and_the_span_says_so(self, world: World) -> None:
        client = LightningChatCompletionClient(ChatCompletionCache(programs.MODEL))
        async with world.rollout() as recorder:
            await client.create(asked())
            await client.create(asked())
            assert await unjoined(world, recorder) == ["a cache: AutoGen answered without calling the model"]
            assert len((await world.records(recorder)).calls) == 1


def _with_key(value: Any) -> Any:
    """A dumped client hides its key; whoever loads it sets one."""
    if isinstance(value, dict):
        return {k: "secret" if k == "api_key" else _with_key(v) for k, v in value.items()}
    return value


async def test_a_team_loaded_from_a_component_configuration_is_recorded(world: World, installed: None) -> None:
    written = json.dumps(_with_key(json.loads(programs.selector(allow_repeated_speaker=True).dump_component().model_dump_json())))
    team = BaseGroupChat.load_component(json.loads(written))
    async with world.rollout() as recorder:
        await team.run(task="question")
        await world.joined(recorder, 8)
    made = await world.trajectory(recorder)
    assert {t.agent for t in made.transitions} == {"SelectorGroupChatManager", "writer", "critic"}


class TestClientsThatAskOthers:
    async def test_only_the_client_that_sends_is_a_model_call(self, world: World, installed: None) -> None:
        client = LightningChatCompletionClient(ChatCompletionCache(programs.MODEL))
        async with world.rollout() as recorder:
            await AssistantAgent("solver", client, system_message="plan: hi").run(task="question")
            _ = [item async for item in client.create_stream(asked("other"))]
            spans = await world.joined(recorder, 2)
        assert [(span.name, span.agent) for span in spans] == [("gpt-4o-mini", "solver"), ("gpt-4o-mini", None)]

    async def test_a_client_that_asks_twice_is_two_model_calls(self, world: World, installed: None) -> None:
        class Twice(ReplayChatCompletionClient):
            async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
                await programs.MODEL.create(messages)
                return await programs.MODEL.create(messages)

        async with world.rollout() as recorder:
            await Twice(["never"]).create(asked())
            await world.joined(recorder, 2)

    async def test_a_client_that_sends_nothing_says_so(self, world: World, installed: None) -> None:
        class Fake(ReplayChatCompletionClient):
            async def create(self, messages: Any, **kwargs: Any) -> CreateResult:
                usage = RequestUsage(prompt_tokens=0, completion_tokens=0)
                return CreateResult(finish_reason="stop", content="hi", usage=usage, cached=False)

        async with world.rollout() as recorder:
            await Fake([]).create(asked())
            (cause,) = await unjoined(world, recorder)
        assert cause.startswith("no request was seen")

    async def test_only_a_span_that_is_not_joined_keeps_the_answer(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            await programs.MODEL.create(asked("plan: sent"))
            await ReplayChatCompletionClient(["not sent"]).create(asked())
            spans = await world.spans(recorder, "llm")
        assert [span.attributes.get("output") for span in spans] == [None, "not sent"]
        assert spans[0].attributes["usage"]["input_tokens"] > 0

    async def test_a_client_for_another_model_is_left_alone(self, world: World, installed: None) -> None:
        judge = OpenAIChatCompletionClient(model="gpt-4", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
        async with world.rollout() as recorder:
            with pytest.raises(openai.APIConnectionError):
                await judge.create(asked())
            (cause,) = await unjoined(world, recorder)
        assert cause.startswith("another address: the request went to 127.0.0.1:9 for model 'gpt-4'")
        assert "agentlightning_autogen.install(models=['gpt-4'])" in cause


class TestFailures:
    @pytest.fixture
    def script(self) -> Any:
        tries = iter(range(10))

        def flaky(prompt: str, sampling: Sampling) -> str:
            if next(tries) == 0:
                raise RuntimeError("the engine broke")
            return planned(prompt, sampling)

        return flaky

    async def test_a_retry_of_the_client_is_joined_to_the_try_that_answered(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            await chat(recorder, max_retries=2).create(asked())
            (span,) = await world.spans(recorder, "llm")
            (answered,) = [call for call in (await world.records(recorder)).calls if call.status == "completed"]
            assert span.call_id == answered.id
        assert (await world.trajectory(recorder)).calls == {"superseded": 1, "completed": 1}

    async def test_a_call_that_failed_at_the_gateway_is_joined_and_ends_what_it_was_in(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            agent = AssistantAgent("solver", chat(recorder))
            with pytest.raises(openai.InternalServerError):
                await agent.run(task="question")
            (span,) = await world.spans(recorder, "llm")
            assert [call.id for call in (await world.records(recorder)).calls] == [span.call_id]
            assert "InternalServerError" in span.attributes["error"]
            assert "InternalServerError" in named(await world.spans(recorder), "solver").attributes["error"]
        assert (await world.trajectory(recorder)).calls == {"error": 1}


class TestLeaving:
    @pytest.fixture
    def delay(self) -> float:
        return 0.3

    async def test_a_call_that_was_cancelled_is_a_span_of_its_call(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            token = CancellationToken()
            running = asyncio.create_task(programs.assistant().run(task="question", cancellation_token=token))
            await asyncio.sleep(0.2)
            token.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            while not (calls := (await world.records(recorder)).calls):
                await asyncio.sleep(0.01)
            (span,) = await world.spans(recorder, "llm")
        assert (calls[0].status, calls[0].id) == ("cancelled", span.call_id)
        assert (span.agent, span.attributes["error"]) == ("solver", "CancelledError")

    async def test_a_stream_that_is_left_is_a_span_of_its_call(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            stream = programs.MODEL.create_stream(asked("plan: many words and more words and more"))
            async for _ in stream:
                break
            await stream.aclose()
            gc.collect()
            while not (calls := (await world.records(recorder)).calls):  # AutoGen does not close the response: it may be sent whole
                await asyncio.sleep(0.01)
            (span,) = await world.spans(recorder, "llm")
        assert [call.id for call in calls] == [span.call_id]
        assert span.attributes["error"] == "GeneratorExit"


class TestStructure:
    async def test_between_two_steps_of_a_stream_the_consumer_is_itself(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            async for _ in programs.assistant(model_client_stream=True, max_tool_iterations=2).run_stream(task="question"):
                assert current_span_id() is None
                await programs.MODEL.create(asked("plan: hi"))
            spans = await world.joined(recorder, len((await world.records(recorder)).calls))
        assert [span.agent for span in spans if span.parent_id is not None] == ["solver", "solver"]
        assert len([span for span in spans if span.agent is None]) >= 4

    async def test_a_tool_in_a_thread_knows_its_span_and_its_reward_reaches_the_call_that_asked(self, world: World) -> None:
        install(models=["gpt-4o-mini"])
        seen: list[str | None] = []

        def scored(x: int) -> int:
            """Judges itself."""
            seen.append(current_span_id())
            agl.reward(0.5, span=seen[-1])
            return x

        async with world.rollout() as recorder:
            await programs.agent("solver", "CALL scored(3) | three", tools=[scored], max_tool_iterations=2).run(task="question")
            spans = await world.spans(recorder)
        assert seen == [named(spans, "scored").id]
        state, records = await world.store.read(recorder.rollout.id)
        made = trajectory(state, records)
        assert [[reward.value for reward in t.rewards] for t in made.transitions] == [[0.5], []]

    async def test_a_tool_that_fails_is_a_span_with_its_error(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            await programs.agent("solver", "CALL broken(3)", tools=[programs.broken]).run(task="question")
            tool = named(await world.spans(recorder), "broken")
        assert tool.attributes["error"] == "no 3 here"
        assert "output" not in tool.attributes

    async def test_tools_called_side_by_side_are_siblings(self, world: World, installed: None) -> None:
        both = BaseTool.run_json
        assert both is vars(BaseTool)["run_json"]
        async with world.rollout() as recorder:
            tool = FunctionTool(programs.triple, "Triples.")
            await asyncio.gather(*(tool.run_json({"x": i}, CancellationToken()) for i in range(3)))
            spans = await world.spans(recorder, "tool")
        assert [(span.name, span.parent_id) for span in spans] == [("triple", None)] * 3
        assert sorted(span.attributes["output"] for span in spans) == ["0", "3", "6"]

    async def test_agents_of_ones_own_are_agents_whenever_their_class_was_made(self, world: World, installed: None) -> None:
        class Echo(BaseChatAgent):
            produced_message_types = (TextMessage,)  # type: ignore[assignment]

            async def on_messages(self, messages: Sequence[Any], cancellation_token: CancellationToken) -> Response:
                result = await programs.MODEL.create(asked("plan: echo"))
                return Response(chat_message=TextMessage(content=str(result.content), source=self.name))

            async def on_reset(self, cancellation_token: CancellationToken) -> None: ...

        async with world.rollout() as recorder:
            await RoundRobinGroupChat([Echo("echo", "Echoes."), programs.agent("writer", "text")], max_turns=3).run(task="question")
            llm = await world.joined(recorder, 3)
            spans = await world.spans(recorder)
        assert [span.agent for span in llm] == ["echo", "writer", "echo"]
        assert tree(spans)["RoundRobinGroupChat"] == ["echo", "writer", "echo"]

    async def test_an_agent_of_the_core_library_gives_its_name(self, world: World, installed: None) -> None:
        class Asker(RoutedAgent):
            @message_handler
            async def handle(self, message: UserMessage, ctx: MessageContext) -> UserMessage:
                result = await programs.MODEL.create([message])
                return UserMessage(content=str(result.content), source="asker")

        async with world.rollout() as recorder:
            runtime = SingleThreadedAgentRuntime()
            await Asker.register(runtime, "asker", lambda: Asker("Asks."))
            runtime.start()
            await runtime.send_message(asked("plan: hi")[0], AgentId("asker", "default"))
            await runtime.stop_when_idle()
            (span,) = await world.joined(recorder, 1)
        assert span.agent == "asker"

    async def test_what_an_orchestrator_plans_is_its_own(self, world: World, installed: None) -> None:
        done = {"reason": "done", "answer": True}
        ledger = {
            "is_request_satisfied": done, "is_in_loop": done, "is_progress_being_made": done,
            "next_speaker": {"reason": "only one", "answer": "writer"}, "instruction_or_question": {"reason": "go", "answer": "write"},
        }  # fmt: skip
        writes = json.dumps({**ledger, "is_request_satisfied": {"reason": "not yet", "answer": False}})
        planner = ReplayChatCompletionClient(["facts", "plan", writes, json.dumps(ledger), "the end"])
        async with world.rollout() as recorder:
            await MagenticOneGroupChat([programs.agent("writer", "text")], planner).run(task="question")
            spans = await world.spans(recorder, "llm")
        manager = "MagenticOneOrchestrator"
        assert [span.agent for span in spans] == [manager, manager, manager, "writer", manager, manager]

    async def test_a_runtime_that_was_started_outside_serves_the_rollouts_of_its_teams(self, world: World, installed: None) -> None:
        runtime = SingleThreadedAgentRuntime()
        runtime.start()

        def team() -> Any:
            return RoundRobinGroupChat([programs.agent("writer", "a"), programs.agent("critic", "b")], max_turns=2, runtime=runtime)

        async def rollout(number: int) -> None:
            async with world.rollout(number) as recorder:
                await team().run(task="question")
                assert [span.agent for span in await world.joined(recorder, 2)] == ["writer", "critic"]

        await asyncio.gather(*(rollout(number) for number in range(3)))
        await runtime.stop()

    async def test_outside_a_rollout_nothing_is_recorded_and_nothing_fails(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            pass
        agent = AssistantAgent("solver", LightningChatCompletionClient(ReplayChatCompletionClient(["hi", "there"])))
        assert (await agent.run(task="question")).messages[-1].to_text() == "hi"  # type: ignore[union-attr]
        assert [item async for item in agent.run_stream(task="question")][-1].messages[-1].to_text() == "there"
        assert (await world.store.records(recorder.attempt.id)).spans == ()

    async def test_a_fault_of_the_adapter_is_logged_once_noted_and_kept_from_the_program(
        self, world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def bug(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a bug")

        monkeypatch.setattr(structure_module, "begin", bug)
        install(models=["gpt-4o-mini"])
        async with world.rollout() as recorder:
            result = await programs.assistant(max_tool_iterations=2).run(task="question")
            notes = await world.spans(recorder, "note")
            spans = await world.spans(recorder, "llm")
        assert result.messages[-1].to_text() == "it is 6"  # type: ignore[union-attr]
        assert notes[0].name == "the AutoGen adapter could not record the start of AssistantAgent: RuntimeError: a bug"
        assert len([record for record in caplog.records if "start of AssistantAgent" in record.message]) == 1
        assert all(span.call_id for span in spans)


async def test_selecting_agents_by_name_passes_the_check_of_joins(world: World, installed: None) -> None:
    async with world.rollout() as recorder:
        await programs.nested().run(task="question")
    made = await world.trajectory(recorder, agents=["writer", "soc*"])
    check_joins([made], ["writer", "soc*"])
    assert [t.agent for t in made.transitions if t.trained] == ["writer", "society"]


ROOTS: tuple[type, ...] = (
    ChatAgent, Team, BaseTool, Workbench, ChatCompletionClient, FunctionTool, BaseAgent, SingleThreadedAgentRuntime,
)  # fmt: skip


def _methods() -> Mapping[tuple[str, str], Any]:
    names = ("create", "create_stream", "on_messages", "on_messages_stream", "run", "run_stream", "run_json", "run_json_stream")
    found: dict[tuple[str, str], Any] = {}
    waiting = list(ROOTS)
    while waiting:
        each = waiting.pop()
        waiting += each.__subclasses__()
        for name in (*names, "call_tool", "call_tool_stream", "__init_subclass__", "on_message", "send_message"):
            if name in vars(each):
                found[f"{each.__module__}.{each.__qualname__}", name] = vars(each)[name]
    return found


def test_uninstalling_leaves_autogen_and_the_openai_library_as_they_were() -> None:
    uninstall()
    for other in [*clients()._models]:  # a test before, in this process, may have installed another adapter
        clients().uninstall(other)
    client: Any = openai._base_client.BaseClient
    before, request = _methods(), client._build_request
    code = {key: getattr(each, "__func__", each).__code__.co_filename for key, each in before.items()}
    assert not [key for key, file in code.items() if "agentlightning" in file and not key[0].startswith("agentlightning")]
    install()
    install(models=["a"])
    made = type("MadeWhileInstalled", (ReplayChatCompletionClient,), {"create": ReplayChatCompletionClient.create})
    during = _methods()
    assert len([key for key in before if during[key] is not before[key]]) > 20
    assert client._build_request is not request
    uninstall()
    after = {key: value for key, value in _methods().items() if made.__qualname__ not in key[0]}
    assert after == dict(before)
    assert client._build_request is request


async def test_a_stream_stays_an_asynchronous_generator_and_closing_it_closes_what_is_inside(installed: None) -> None:
    closed: list[bool] = []

    class Watched(ReplayChatCompletionClient):
        async def create_stream(self, messages: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
            try:
                yield "one"
                yield "two"
            finally:
                closed.append(True)

    stream = Watched([]).create_stream(asked())
    assert isinstance(stream, AsyncGenerator)
    assert await anext(stream) == "one"
    await stream.aclose()
    assert closed == [True]
