"""The contract of `Adapter` as tests that any implementation runs on itself. Needs `agentlightning[serve]`.

    class TestMyAdapter(AdapterContract):
        adapter = my_package.adapter

        async def run_agent(self, llm, tool, question):
            agent = Agent(name="solver", model=client_of(llm), tools=[tool])
            return await agent.run(question)

The tests are coroutines: pytest-asyncio runs them in auto mode, or with a mark on the class (`pytestmark = pytest.mark.asyncio`).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import agentlightning.capture.recorder as recording
from agentlightning.capture.recorder import Recorder
from agentlightning.contracts.adapter import Adapter
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.testing.world import World, open_world
from agentlightning.types import LLM, Sampling, Span

FAMOUS = "a-famous-model"
"""A model of somebody else, which agents name in their code."""
NOWHERE = "http://127.0.0.1:9/v1"
"""An address at which nobody listens."""


def reply(prompt: str, sampling: Sampling) -> str:
    """The model: it calls the tool `double` with the number that the user asks for, then answers with the tool's result."""
    last = prompt.rpartition("<|im_start|>assistant")[0].rpartition("<|im_start|>")[2]
    role, _, text = last.partition("\n")
    text = text.partition("<|im_end|>")[0]
    return f"CALL double({text.split()[-1]})" if role == "user" and text.startswith("double") else f"the answer: {text}"


def double(x: int) -> int:
    """Doubles a number."""
    return 2 * x


class AdapterContract:
    """Subclass it, and give it the adapter and an agent of its framework."""

    adapter: ClassVar[Any]
    """The module of the adapter: an `Adapter`."""

    async def run_agent(self, llm: LLM, tool: Callable[[int], int], question: str) -> str:
        """Build an agent that is called `solver`, ask it, and return its last answer.

        Its model client has `llm.model`, `llm.base_url` and `llm.api_key`, and never retries. Its one tool is the function `tool`, which is
        typed and documented. An error in the tool may end the agent, or reach the model as text.
        """
        raise NotImplementedError("Define `run_agent` in the subclass. It runs an agent of your framework.")

    @property
    def _adapter(self) -> Adapter:
        return self.adapter

    @asynccontextmanager
    async def world(self) -> AsyncGenerator[World]:
        """Open a store, a gateway and a model; uninstall the adapter at the end."""
        with TemporaryDirectory() as folder:
            await asyncio.to_thread(make_tokenizer, folder)
            async with open_world(Path(folder), reply) as world:
                try:
                    yield world
                finally:
                    self._adapter.uninstall()

    @asynccontextmanager
    async def recorded(self, tool: Callable[[int], int] = double) -> AsyncGenerator[tuple[World, Recorder]]:
        """Run the agent in a rollout, with the adapter installed."""
        async with self.world() as world:
            self._adapter.install()
            async with world.rollout() as recorder:
                answer = await self.run_agent(recorder.llm, tool, "double 4")
            assert "8" in answer
            yield world, recorder

    # --- structure -----------------------------------------------------------------------------------------------------------------

    async def test_every_model_call_is_a_span_joined_to_its_tokens(self) -> None:
        async with self.recorded() as (world, recorder):
            llm = await world.joined(recorder, 2)
            assert len(llm) == 2
            assert not [span.attributes["unjoined"] for span in llm if "unjoined" in span.attributes]

    async def test_model_calls_have_the_name_of_their_agent(self) -> None:
        async with self.recorded() as (world, recorder):
            learned = await world.trajectory(recorder, agents=["solver"])
            assert [(transition.agent, transition.trained) for transition in learned.transitions] == [("solver", True)] * 2

    async def test_a_tool_is_a_span_below_the_agent_with_input_and_output(self) -> None:
        async with self.recorded() as (world, recorder):
            spans = await world.spans(recorder)
            (tool,) = [span for span in spans if span.kind == "tool"]
            assert tool.name == "double"
            assert json.dumps(tool.attributes["input"]).count("4") == 1
            assert "8" in json.dumps(tool.attributes["output"])
            assert "error" not in tool.attributes
            by_id = {span.id: span for span in spans}
            above: Span | None = tool
            while above is not None and above.kind != "agent":
                above = by_id.get(above.parent_id or "")
            assert above is not None, "no span of kind `agent` is above the tool's"

    async def test_spans_have_a_start_and_an_end(self) -> None:
        async with self.recorded() as (world, recorder):
            spans = await world.spans(recorder)
        assert spans
        assert all(span.ended is not None and span.started <= span.ended for span in spans)

    async def test_a_tool_that_fails_is_a_span_with_its_error(self) -> None:
        def double(x: int) -> int:
            """Raises an error."""
            raise ValueError(f"no {x} here")

        async with self.world() as world:
            self._adapter.install()
            async with world.rollout() as recorder:
                with suppress(Exception):  # a framework may end the agent, or tell the model
                    await self.run_agent(recorder.llm, double, "double 4")
                (tool,) = await world.spans(recorder, "tool")
        assert tool.attributes["error"]

    async def test_a_reward_in_a_tool_belongs_to_the_call_that_asked_for_it(self) -> None:
        def double(x: int) -> int:
            """Doubles a number, and earns a reward."""
            recording.reward(0.5, name="good", span=self._adapter.current_span_id())
            return 2 * x

        async with self.recorded(double) as (world, recorder):
            learned = await world.trajectory(recorder)
            rewards = [[(reward.name, reward.value) for reward in transition.rewards] for transition in learned.transitions]
            assert rewards == [[("good", 0.5)], []]

    # --- whose call it is ------------------------------------------------------------------------------------------------------------

    async def test_concurrent_rollouts_keep_their_calls_apart(self) -> None:
        async with self.world() as world:
            self._adapter.install()

            async def one(number: int) -> None:
                async with world.rollout(number) as recorder:
                    assert f"{2 * number}" in await self.run_agent(recorder.llm, double, f"double {number}")
                    await world.joined(recorder, 2)

            await asyncio.gather(*(one(number) for number in range(10, 14)))

    async def test_a_model_that_stands_for_the_one_in_training_is_trained(self) -> None:
        async with self.world() as world:
            self._adapter.install(models=[FAMOUS])
            async with world.rollout() as recorder:
                await self.run_agent(LLM(model=FAMOUS, base_url=NOWHERE, api_key="none"), double, "double 4")
                await world.joined(recorder, 2)

    async def test_an_agent_in_a_thread_of_a_rollout_belongs_to_it(self) -> None:
        async with self.world() as world:
            self._adapter.install(models=[FAMOUS])

            def in_a_thread() -> None:
                agent = self.run_agent(LLM(model=FAMOUS, base_url=NOWHERE, api_key="none"), double, "double 4")
                thread = threading.Thread(target=asyncio.run, args=(agent,))
                thread.start()
                thread.join()

            async def one(number: int) -> None:
                async with world.rollout(number) as recorder:
                    await asyncio.to_thread(in_a_thread)
                    await world.joined(recorder, 2)

            await asyncio.gather(*(one(number) for number in range(4)))

    async def test_another_model_is_left_alone_and_its_span_says_so(self) -> None:
        async with self.world() as world:
            self._adapter.install()
            async with world.rollout() as recorder:
                with suppress(Exception):  # nobody listens there
                    await self.run_agent(LLM(model=FAMOUS, base_url=NOWHERE, api_key="none"), double, "double 4")
                records = await world.records(recorder)
        assert records.calls == ()
        llm = [span for span in records.spans if span.kind == "llm"]
        assert llm, "the call has no span"
        assert all(span.call_id is None and span.attributes.get("unjoined") for span in llm)

    # --- where it is installed -------------------------------------------------------------------------------------------------------

    async def test_installing_twice_records_once(self) -> None:
        async with self.world() as world:
            self._adapter.install()
            self._adapter.install()
            async with world.rollout() as recorder:
                await self.run_agent(recorder.llm, double, "double 4")
                await world.joined(recorder, 2)
                assert len(await world.spans(recorder, "tool")) == 1

    async def test_outside_a_rollout_an_agent_runs_and_nothing_is_recorded(self) -> None:
        async with self.world() as world:
            self._adapter.install()
            async with world.rollout() as recorder:
                agent = self.run_agent(recorder.llm, double, "double 4")
                answer = await asyncio.get_running_loop().create_task(agent, context=Context())  # in which no rollout is current
                assert "8" in answer
                assert await world.spans(recorder) == []

    async def test_uninstalled_it_records_nothing(self) -> None:
        async with self.world() as world:
            self._adapter.install()
            self._adapter.uninstall()
            async with world.rollout() as recorder:
                assert "8" in await self.run_agent(recorder.llm, double, "double 4")
                assert await world.spans(recorder) == []
