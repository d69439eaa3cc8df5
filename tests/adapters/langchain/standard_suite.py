"""LangChain's standard suites for chat models, on plain ChatOpenAI against the gateway: nothing of ours is in the process that asks.

Each test is one attempt, and its requests all become transitions. What is skipped stands in `SKIPPED`, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from adapter_world import World
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from agentlightning.rl.trajectory.build import trajectory
from agentlightning.types import LLM, Rollout, Sampling, Task

TEXT_ONLY = "content other than text is refused with a 400 that says so"
ONE_MODEL = "a run serves one model: its policy's name is taken as well, and the answer names the model"
SKIPPED = {
    "test_invoke_with_model_override": ONE_MODEL,
    "test_ainvoke_with_model_override": ONE_MODEL,
    "test_stream_with_model_override": ONE_MODEL,
    "test_astream_with_model_override": ONE_MODEL,
    "test_pdf_inputs": TEXT_ONLY,
    "test_audio_inputs": TEXT_ONLY,
    "test_image_inputs": TEXT_ONLY,
    "test_image_tool_message": TEXT_ONLY,
    "test_pdf_tool_message": TEXT_ONLY,
    "test_stream_time": "it times the replay of a recorded answer of a hosted API; the gateway's speed is in benchmarks/performance",
}
JOKE = json.dumps({"setup": "Why do cats sit on keyboards?", "punchline": "To watch the mouse."})


class Standard(ChatModelIntegrationTests):
    """What the suites have in common."""

    may_refuse = False
    """Whether the gateway may refuse requests of this suite."""

    @pytest.fixture
    async def llm(self, world: World) -> AsyncIterator[LLM]:
        """What an agent gets of an attempt, whose requests are counted when the test has ended."""
        rollout = Rollout(task=Task("standard", None), mode="train", sampling=Sampling(max_tokens=400))
        attempt = await world.store.begin(rollout, "test", lease=60)
        yield world.gateway.llm(attempt)
        await world.store.finish(attempt.id, "succeeded")
        state, records = await world.store.read(rollout.id)
        made = trajectory(state, records)
        completed, refused = made.calls.get("completed", 0), made.calls.get("refused", 0)
        assert refused == 0 or self.may_refuse, [call.detail for call in records[0].calls]
        assert completed + refused == len(records[0].calls) > 0
        assert len(made.transitions) == completed
        assert all(len(each.response_ids) for each in made.transitions)

    @pytest.fixture(autouse=True)
    def reached(self, request: pytest.FixtureRequest) -> None:
        """Say why a test is skipped; for the others, take the address of an attempt."""
        name = request.node.originalname
        if name in SKIPPED:
            pytest.skip(SKIPPED[name])
        if name != "test_no_overrides_DO_NOT_OVERRIDE":
            self._llm = request.getfixturevalue("llm")

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest, reached: None) -> BaseChatModel:
        return ChatOpenAI(**{**self.chat_model_params, **getattr(request, "param", {})})

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        llm: LLM = self._llm
        return {"model": llm.model, "base_url": llm.base_url, "api_key": llm.api_key, "max_retries": 0, **self.settings}

    @property
    def settings(self) -> dict[str, Any]:
        return {"stream_usage": True}  # ChatOpenAI asks for it by itself only at OpenAI's own address

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True
