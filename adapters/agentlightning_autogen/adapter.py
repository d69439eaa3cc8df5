"""The installation, and the client that records its own calls alone."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Self

from autogen_core import CancellationToken, Component, ComponentModel
from autogen_core.models import (
    ChatCompletionClient,
    CreateResult,
    LLMMessage,
    ModelCapabilities,  # pyright: ignore[reportDeprecated]  # an abstract member names it
    ModelInfo,
    RequestUsage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel

from agentlightning.capture.openai_patch import clients
from agentlightning_autogen.calls import ADAPTER, Calls
from agentlightning_autogen.patches import Patches
from agentlightning_autogen.spans import innermost
from agentlightning_autogen.structure import Structure


class Installation:
    """What this process shares: the patches of AutoGen, and whether every model client is recorded."""

    def __init__(self) -> None:
        self.everywhere = False
        self._patches: Patches | None = None

    def put(self, models: Collection[str] = ()) -> None:
        """Patch AutoGen and the `openai` clients. Idempotent; `models` are added to those named before."""
        clients().install(ADAPTER, models)
        if self._patches is None:
            self._patches = Patches()
            Structure().put(self._patches)
            Calls(lambda client: isinstance(client, LightningChatCompletionClient), lambda: self.everywhere).put(self._patches)

    def remove(self) -> None:
        clients().uninstall(ADAPTER)
        self.everywhere = False
        if self._patches is not None:
            self._patches.remove()
            self._patches = None


@cache
def installation() -> Installation:
    """This process's. (Cached: the classes that it patches are the process's as well.)"""
    return Installation()


def install(models: Collection[str] = ()) -> None:
    """Record every AutoGen agent, team, tool and model call of a rollout, with no change in the program. Idempotent.

    Programs that are loaded from component configurations (YAML, JSON) are recorded as well. Model calls for the rollout's model, or to
    its gateway, go to that gateway whatever address they were built with; `models` are further names, or patterns, of models that stand
    for it: a team with `OpenAIChatCompletionClient(model="gpt-4o")` is trained as it is after `install(models=["gpt-4o"])`. Other models
    are left alone, and never see the rollout's key.
    """
    here = installation()
    here.put(models)
    here.everywhere = True


def uninstall() -> None:
    """Undo `install`, and what a `LightningChatCompletionClient` installed: AutoGen is as it was."""
    installation().remove()


def current_span_id() -> str | None:
    """The id of the span that runs here (the tool, the agent, the team), for `agl.reward(value, span=...)`. None outside one."""
    part = innermost()
    while part is not None and part.quiet:  # its span is not certain yet
        part = part.parent
    return part.id if part is not None else None


class LightningChatCompletionClientConfig(BaseModel):
    """The configuration of a `LightningChatCompletionClient` as a component."""

    client: ComponentModel


class LightningChatCompletionClient(ChatCompletionClient, Component[LightningChatCompletionClientConfig]):
    """A model client whose calls, during a rollout, are those of the model in training, whatever model and address `client` names.

    Agents, teams and tools are recorded around it; other clients of the program are left alone. Outside a rollout it is `client`.
    """

    component_type = "model"
    component_provider_override = "agentlightning_autogen.LightningChatCompletionClient"
    component_config_schema = LightningChatCompletionClientConfig

    def __init__(self, client: ChatCompletionClient) -> None:
        self.client = client
        installation().put()

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = [],
        tool_choice: Tool | Literal["auto", "required", "none"] = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        """See `ChatCompletionClient.create`."""
        return await self.client.create(
            messages,
            tools=tools,
            tool_choice=tool_choice,
            json_output=json_output,
            extra_create_args=extra_create_args,
            cancellation_token=cancellation_token,
        )

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = [],
        tool_choice: Tool | Literal["auto", "required", "none"] = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] = {},
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """See `ChatCompletionClient.create_stream`."""
        stream = self.client.create_stream(
            messages,
            tools=tools,
            tool_choice=tool_choice,
            json_output=json_output,
            extra_create_args=extra_create_args,
            cancellation_token=cancellation_token,
        )
        async for item in stream:
            yield item

    async def close(self) -> None:
        """Close the client inside."""
        await self.client.close()

    def actual_usage(self) -> RequestUsage:
        """See `ChatCompletionClient.actual_usage`."""
        return self.client.actual_usage()

    def total_usage(self) -> RequestUsage:
        """See `ChatCompletionClient.total_usage`."""
        return self.client.total_usage()

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = []) -> int:
        """As the client inside counts, by its own model's tokenizer."""
        return self.client.count_tokens(messages, tools=tools)

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = []) -> int:
        """As the client inside counts, by its own model's context."""
        return self.client.remaining_tokens(messages, tools=tools)

    @property
    def capabilities(self) -> ModelCapabilities:  # pyright: ignore[reportDeprecated]
        """Deprecated by AutoGen: see `model_info`."""
        warnings.warn("capabilities is deprecated, use model_info instead", DeprecationWarning, stacklevel=2)
        return self.client.capabilities

    @property
    def model_info(self) -> ModelInfo:
        """See `ChatCompletionClient.model_info`."""
        return self.client.model_info

    def _to_config(self) -> LightningChatCompletionClientConfig:
        return LightningChatCompletionClientConfig(client=self.client.dump_component())

    @classmethod
    def _from_config(cls, config: LightningChatCompletionClientConfig) -> Self:
        return cls(ChatCompletionClient.load_component(config.client))
