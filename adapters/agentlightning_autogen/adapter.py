"""The installation, and a client that records only its own calls."""

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

from agentlightning.capture.clients import clients
from agentlightning_autogen.calls import ADAPTER, Calls
from agentlightning_autogen.patches import Patches
from agentlightning_autogen.spans import innermost
from agentlightning_autogen.structure import Structure


class Installation:
    """Process-wide state: the patches of AutoGen, and whether every model client is recorded."""

    def __init__(self) -> None:
        self.everywhere = False
        self._patches: Patches | None = None

    def put(self, models: Collection[str] = ()) -> None:
        """Patch AutoGen and the `openai` clients. Idempotent. `models` adds to earlier names."""
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
    """Return this process's installation. It is cached because the patched classes are process-wide too."""
    return Installation()


def install(models: Collection[str] = ()) -> None:
    """Record every AutoGen agent, team, tool, and model call of a rollout, without code changes.

    Idempotent. Programs loaded from component configs (YAML, JSON) are recorded too. Calls for the rollout's model, or to its gateway, go
    to that gateway regardless of their client's address. `models` lists other names or patterns that stand for this model. For example,
    `install(models=["gpt-4o"])` trains a team that uses `OpenAIChatCompletionClient(model="gpt-4o")`. Calls for all other models are left
    alone, and never see the rollout's key.
    """
    here = installation()
    here.put(models)
    here.everywhere = True


def uninstall() -> None:
    """Undo `install` and every `LightningChatCompletionClient`. This restores AutoGen."""
    installation().remove()


def current_span_id() -> str | None:
    """Return the id of the current tool, agent, or team span, for `agl.reward(value, span=...)`. Return None outside a span."""
    part = innermost()
    while part is not None and part.quiet:  # it may not become a span
        part = part.parent
    return part.id if part is not None else None


class LightningChatCompletionClientConfig(BaseModel):
    """Component config of a `LightningChatCompletionClient`."""

    client: ComponentModel


class LightningChatCompletionClient(ChatCompletionClient, Component[LightningChatCompletionClientConfig]):
    """A model client whose calls go to the model being trained during a rollout, whatever model and address `client` names.

    Agents, teams, and tools around it are recorded. Other clients are left alone. Outside a rollout, it behaves like `client`.
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
        """Close the wrapped client."""
        await self.client.close()

    def actual_usage(self) -> RequestUsage:
        """See `ChatCompletionClient.actual_usage`."""
        return self.client.actual_usage()

    def total_usage(self) -> RequestUsage:
        """See `ChatCompletionClient.total_usage`."""
        return self.client.total_usage()

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = []) -> int:
        """Count tokens with the wrapped client's tokenizer."""
        return self.client.count_tokens(messages, tools=tools)

    def remaining_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = []) -> int:
        """Count remaining tokens in the wrapped client's context."""
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
