"""LangChain's standard suites for chat models, on plain ChatOpenAI against the gateway: nothing of ours is in the process that asks.

Each test is one attempt, and its requests all become transitions. What is skipped stands in `SKIPPED`, with the reason.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.unit_tests import ChatModelUnitTests
from standard_suite import JOKE, Standard

from agentlightning.types import Sampling


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
        name = begun.removeprefix("CALL").strip().partition("(")[0] or "magic_function"
        return f"CALL {name}({arguments.get(name, JOKE)})".removeprefix(begun)
    if "Reply with one JSON object" in asked:
        return JOKE
    if "get_weather(" in asked and question.startswith("What is the weather"):
        return "CALL get_weather(San Francisco, CA)"
    return "Hello to you, and good day"


@pytest.fixture
def script() -> Any:
    return says


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
