"""Every model call is joined to its recorded call, or says why not."""

# No `from __future__ import annotations`: LangChain reads the annotations of tools that are made inside a function.

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import openai
import pytest
from adapter_world import World
from langchain.agents import create_agent
from langchain_core.caches import InMemoryCache
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_world import chat, question, reply
from pydantic import BaseModel

import agentlightning as agl
from agentlightning.rl.trajectory.build import check_joins
from agentlightning.types import Sampling
from agentlightning_langchain import LightningCallback, current_span_id, install
from agentlightning_langchain.adapter import installation


class Answer(BaseModel):
    """The answer."""

    x: int


@tool
def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


def with_callback() -> Any:
    return {"callbacks": [LightningCallback()]}


async def unjoined(world: World, recorder: Any) -> list[str]:
    spans = (await world.records(recorder)).spans
    return [span.attributes["unjoined"] for span in spans if span.kind == "llm" and span.call_id is None]


async def test_invoke_stream_and_batch_sync_and_async_are_joined(world: World) -> None:
    async with world.rollout() as recorder:
        agent = create_agent(chat(recorder), [double], name="solver")
        streaming = create_agent(chat(recorder, streaming=True), [double], name="streaming")

        def blocking() -> None:
            agent.invoke(question(), with_callback())
            list(agent.stream(question(), with_callback(), stream_mode="messages"))
            streaming.invoke(question(), with_callback())
            agent.batch([question(1), question(2), question(3)], with_callback())

        await asyncio.to_thread(blocking)
        await agent.ainvoke(question(), with_callback())
        _ = [part async for part in agent.astream(question(), with_callback(), stream_mode="messages")]
        _ = [event async for event in agent.astream_events(question(), with_callback(), version="v2")]
        await streaming.ainvoke(question(), with_callback())
        await agent.abatch([question(1), question(2), question(3)], with_callback())
        await world.joined(recorder, 2 * 13)


async def test_prompts_that_start_together_are_told_apart_by_their_answers(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder)
        await asyncio.to_thread(model.generate, [[HumanMessage("a")], [HumanMessage("b")]], callbacks=[LightningCallback()])
        await model.agenerate([[HumanMessage("a")], [HumanMessage("b")], [HumanMessage("c")]], callbacks=[LightningCallback()])
        await world.joined(recorder, 5)


async def test_structured_output_is_joined(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder).with_structured_output(Answer, method="function_calling")
        assert await model.ainvoke("Tools: question", with_callback()) == Answer(x=3)
        assert await asyncio.to_thread(model.invoke, "question", with_callback()) == Answer(x=3)
        await world.joined(recorder, 2)


class TestRetries:
    @pytest.fixture
    def script(self) -> Any:
        replies = iter(["no number", "3"])
        return lambda prompt, sampling: next(replies, "")

    async def test_each_try_of_with_retry_is_a_call_of_its_own(self, world: World) -> None:
        async with world.rollout() as recorder:
            model = chat(recorder).with_structured_output(Answer, method="function_calling")
            sure = (model | _not_none).with_retry(wait_exponential_jitter=False)
            assert await sure.ainvoke("question", with_callback()) == Answer(x=3)
            spans = await world.joined(recorder, 2)
        assert [span.attributes.get("retry") for span in spans] == [None, 2]
        assert len((await world.trajectory(recorder)).transitions) == 2


def _not_none(value: Any) -> Any:
    if value is None:
        raise ValueError("no answer")
    return value


async def test_a_fallback_is_joined_and_the_failed_call_says_why_not(world: World) -> None:
    async with world.rollout() as recorder:
        lost = ChatOpenAI(model="other", base_url="http://127.0.0.1:9/v1", api_key="secret", max_retries=0)
        await lost.with_fallbacks([chat(recorder)]).ainvoke("question", with_callback())
        spans = [span for span in (await world.records(recorder)).spans if span.kind == "llm"]
        failed, answered = sorted(spans, key=lambda span: span.started)
    assert answered.call_id is not None
    assert "Connection error" in failed.attributes["error"]
    assert failed.attributes["unjoined"].startswith("another address: the request went to 127.0.0.1:9 for model 'other'")


async def test_an_answer_from_a_cache_is_not_joined(world: World) -> None:
    cache = InMemoryCache()
    async with world.rollout() as first:
        model = chat(first, cache=cache)
        await model.ainvoke("question", with_callback())
        await model.ainvoke("question", with_callback())
        assert [cause.partition(":")[0] for cause in await unjoined(world, first)] == ["a cache"]
        assert len((await world.records(first)).calls) == 1
    async with world.rollout() as second:
        await model.ainvoke("question", with_callback())
        assert [cause.partition(":")[0] for cause in await unjoined(world, second)] == ["a cache"]


async def test_a_model_that_sends_nothing_says_so(world: World) -> None:
    async with world.rollout() as recorder:
        await FakeListChatModel(responses=["hi"]).ainvoke("question", with_callback())
        (cause,) = await unjoined(world, recorder)
    assert cause.startswith("no request was seen")


class TestThreads:
    async def test_a_bare_thread_keeps_its_rollout_with_the_callback(self, world: World) -> None:
        async with world.rollout() as recorder:
            agent, callback = create_agent(chat(recorder), [double], name="solver"), LightningCallback()
            thread = threading.Thread(target=agent.invoke, args=(question(), {"callbacks": [callback]}))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert [span.agent for span in await world.joined(recorder, 2)] == ["solver", "solver"]

    async def test_a_pool_of_threads_keeps_its_rollout_with_the_callback(self, world: World) -> None:
        async with world.rollout() as recorder:
            agent, callback = create_agent(chat(recorder), [double], name="solver"), LightningCallback()
            with ThreadPoolExecutor(4) as pool:
                done = [pool.submit(agent.invoke, question(i), {"callbacks": [callback]}) for i in range(4)]
                await asyncio.gather(*map(asyncio.wrap_future, done))
            await world.joined(recorder, 8)

    async def test_a_tool_that_starts_a_bare_thread_keeps_the_rollout_through_its_config(self, world: World, installed: None) -> None:
        async with world.rollout() as recorder:
            model = chat(recorder)

            @tool
            def ask(question: str, config: RunnableConfig) -> str:
                """Asks in another thread."""
                with ThreadPoolExecutor(1) as pool:
                    return pool.submit(model.invoke, question, config).result().text

            await create_agent(model, [ask], name="boss").ainvoke(question())
            assert len(await world.joined(recorder, 3)) == 3


async def test_installed_and_given_as_well_records_once(world: World, installed: None) -> None:
    install()
    async with world.rollout() as recorder:
        agent = create_agent(chat(recorder), [double], name="solver")
        await agent.ainvoke(question(), with_callback())
        await agent.ainvoke(question(), {"callbacks": [LightningCallback(), LightningCallback()]})
        await asyncio.to_thread(agent.invoke, question())
        await world.joined(recorder, 6)
        spans = (await world.records(recorder)).spans
    assert len({span.id for span in spans}) == len(spans) == 3 * 7


async def test_a_fault_of_the_adapter_is_logged_once_noted_and_kept_from_the_agent(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from agentlightning_langchain import adapter

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(adapter, "chain_run", broken)
    async with world.rollout() as recorder:
        callback = LightningCallback()
        callback._here.complained.clear()
        agent = create_agent(chat(recorder), [double])
        await agent.ainvoke(question(), {"callbacks": [callback]})
        spans = (await world.records(recorder)).spans
    notes = [span for span in spans if span.kind == "note"]
    assert notes[0].name == "the LangChain adapter could not record on_chain_start: RuntimeError: a bug"
    assert len([record for record in caplog.records if "a bug" in record.message]) == 1
    assert len([span for span in spans if span.kind == "llm" and span.call_id]) == 2


class TestFailures:
    @pytest.fixture
    def script(self) -> Any:
        tries = iter(range(10))

        def flaky(prompt: str, sampling: Sampling) -> str:
            if next(tries) == 0:
                raise RuntimeError("the engine broke")
            return reply(prompt, sampling)

        return flaky

    async def test_a_retry_of_the_client_is_joined_to_the_try_that_answered(self, world: World) -> None:
        async with world.rollout() as recorder:
            await chat(recorder, max_retries=2).ainvoke("question", with_callback())
            records = await world.records(recorder)
        (span,) = [span for span in records.spans if span.kind == "llm"]
        (answered,) = [call for call in records.calls if call.status == "completed"]
        assert span.call_id == answered.id
        made = await world.trajectory(recorder)
        assert made.calls == {"superseded": 1, "completed": 1}
        assert not [said for said in made.diagnostics if "never reached" in said]

    async def test_a_call_that_failed_at_the_gateway_is_joined_to_it(self, world: World) -> None:
        async with world.rollout() as recorder:
            with pytest.raises(openai.InternalServerError):
                await chat(recorder).ainvoke("question", with_callback())
            records = await world.records(recorder)
        (span,) = [span for span in records.spans if span.kind == "llm"]
        assert "500" in span.attributes["error"]
        assert [call.id for call in records.calls] == [span.call_id]
        assert (await world.trajectory(recorder)).calls == {"error": 1}


class TestCancelling:
    @pytest.fixture
    def delay(self) -> float:
        return 0.4

    async def test_a_model_call_that_was_cancelled_is_a_span_of_its_call(self, world: World) -> None:
        async with world.rollout() as recorder:
            agent = create_agent(chat(recorder), [double], name="solver")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(agent.ainvoke(question(), with_callback()), 0.3)
            while not (await world.records(recorder)).calls:
                await asyncio.sleep(0.01)
            (call,) = (await world.records(recorder)).calls
            (span,) = await world.spans(recorder, "llm")
        assert call.status == "cancelled"
        assert (span.call_id, span.agent, span.attributes["error"]) == (call.id, "solver", "CancelledError")

    async def test_a_stream_that_is_left_is_a_span_of_its_call(self, world: World) -> None:
        async with world.rollout() as recorder:
            async for _ in chat(recorder).astream("question", with_callback()):
                break
            gc.collect()
            while not (spans := await world.spans(recorder, "llm")) or not (calls := (await world.records(recorder)).calls):
                await asyncio.sleep(0.01)
        assert [span.call_id for span in spans] == [call.id for call in calls]


async def test_an_open_run_does_not_keep_its_rollout_in_memory(world: World) -> None:
    callback = LightningCallback()
    async with world.rollout() as recorder:
        callback.on_chain_start({}, {}, run_id=(run_id := uuid4()), name="never ends")
        assert installation().runs.get(run_id) is not None
        gone = weakref.ref(recorder)
    del recorder, callback
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
    assert installation().runs.get(run_id) is None


async def test_selecting_agents_by_name_leaves_the_others_untrained_and_every_request_counted(world: World) -> None:
    async with world.rollout() as recorder:
        model = chat(recorder)
        helper = create_agent(model, [], name="helper")

        @tool
        async def ask(question: str) -> str:
            """Asks the helper."""
            return (await helper.ainvoke({"messages": [("user", question)]}))["messages"][-1].text

        await create_agent(model, [ask], name="boss").ainvoke(question(), with_callback())
        await world.joined(recorder, 3)
    everyone = await world.trajectory(recorder)
    assert [(t.agent, t.turn) for t in everyone.transitions] == [("boss", 0), ("helper", 0), ("boss", 1)]
    assert all(t.trained for t in everyone.transitions)
    assert everyone.transitions[2].continues == 0
    some = await world.trajectory(recorder, agents=["help*"])
    assert [t.trained for t in some.transitions] == [False, True, False]
    check_joins([some], ["help*"])


async def test_a_reward_for_a_tool_reaches_the_call_that_asked_for_it(world: World) -> None:
    @tool
    def scored(x: int) -> int:
        """Judges itself."""
        agl.reward(0.5, span=current_span_id())
        return x

    async with world.rollout() as recorder:
        await create_agent(chat(recorder), [scored], name="solver").ainvoke(question(), with_callback())
    made = await world.trajectory(recorder)
    assert [[reward.value for reward in t.rewards] for t in made.transitions] == [[0.5], []]
