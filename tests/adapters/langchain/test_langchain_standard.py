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
from langchain_tests.unit_tests import ChatModelUnitTests

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


def says(prompt: str, sampling: Sampling) -> str:
    """What a model that understands the suites' questions would reply, by the end of the prompt."""
    question = prompt.rsplit("<|im_start|>user\n", 1)[-1]
    asked, _, begun = prompt.rpartition("<|im_start|>assistant\n")
    arguments = {
        "magic_function": "3",
        "magic_function_no_args": "",
        "my_adder_tool": '{"a": 3, "b": 4}',
        "greeting_generator": "Pirate",
        "unicode_customer": json.dumps(
            {"customer_name": "你好啊集团" if "你好啊集团" in question else "こんにちは株式会社", "description": "a company"}
        ),
        "get_weather": "San Francisco, CA",
    }
    if begun.startswith("CALL"):  # it must call a tool: which one, it may be told or not
        name = begun.removeprefix("CALL").strip().removesuffix("(")
        call = f"{arguments.get(name or 'magic_function', JOKE)})"
        return call if name else f"magic_function({call}"
    if "Reply with one JSON object" in asked:
        return JOKE
    if "get_weather(" in asked and question.startswith("What is the weather"):
        return "CALL get_weather(San Francisco, CA)"
    return "Hello to you, and good day"


@pytest.fixture
def script() -> Any:
    return says


@pytest.fixture
async def llm(world: World) -> AsyncIterator[LLM]:
    """What an agent gets of an attempt, whose requests are counted when the test has ended."""
    rollout = Rollout(task=Task("standard", None), mode="train", sampling=Sampling(max_tokens=400))
    attempt = await world.store.begin(rollout, "test", lease=60)
    yield world.gateway.llm(attempt)
    await world.store.finish(attempt.id, "succeeded")
    state, records = await world.store.read(rollout.id)
    made = trajectory(state, records)
    assert made.calls == {"completed": len(records[0].calls)}, [call.detail for call in records[0].calls]
    assert len(made.transitions) == len(records[0].calls) > 0
    assert all(len(each.response_ids) for each in made.transitions)


class Standard(ChatModelIntegrationTests):
    """What the suites below have in common."""

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


class TestChatCompletions(Standard):
    """With structured output as JSON that fits a schema, which is ChatOpenAI's default."""


class TestFunctionCalling(Standard):
    """With structured output as the call of a tool."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}


class TestResponses(Standard):
    """Over OpenAI's Responses API."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"use_responses_api": True}


class TestUnits(ChatModelUnitTests):
    """The tests that make no request: that plain ChatOpenAI is made, described and written down with our address in it."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "scripted", "base_url": "http://127.0.0.1:1/v1", "api_key": "the attempt's"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        """The way of a program that runs as a command: everything comes from the environment."""
        environment = {
            "OPENAI_API_KEY": "the attempt's",
            "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
            "OPENAI_API_BASE": "http://127.0.0.1:1/v1",
        }
        return environment, {"model": "scripted"}, {"openai_api_key": "the attempt's", "openai_api_base": "http://127.0.0.1:1/v1"}

    @pytest.fixture
    def snapshot(self) -> Any:
        """In place of a file of the whole form, which is langchain-openai's and changes with its releases: what concerns us in it."""
        return lambda name: Form()


class Form:
    """Equal to a serialised ChatOpenAI with our model and address, and without the key."""

    def __eq__(self, other: object) -> bool:
        kwargs: dict[str, Any] = other["kwargs"]  # type: ignore[index]
        ours = (kwargs["model_name"], kwargs["openai_api_base"]) == ("scripted", "http://127.0.0.1:1/v1")
        return ours and kwargs["openai_api_key"]["type"] == "secret" and "the attempt's" not in json.dumps(other)

    __hash__ = None  # type: ignore[assignment]
