"""Records model calls as spans, joined to the gateway's records.

A `ChatCompletionClient` may delegate to another one: a cache, a retry, or a router. The client that sends the request is the model call. A
delegating client leaves no span. A client that answers without a request leaves a span that gives the reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, cast

from autogen_core import FunctionCall
from autogen_core.models import ChatCompletionClient, CreateResult

from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.to_json import failure, mapping, plain
from agentlightning.types import JSON, new_id
from agentlightning_autogen.patches import Patches
from agentlightning_autogen.spans import Open, askers, begin, current, end, followed, guarded, innermost, logged

ADAPTER = "agentlightning_autogen"
SAMPLING = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "presence_penalty", "frequency_penalty",
    "reasoning_effort", "parallel_tool_calls", "tool_choice", "stream",
)  # fmt: skip
"""Settings of a model call that its span keeps, as the program requested them. The completion has the settings actually used."""


class Calls:
    """Wrappers of model clients. `own`: the client stands for the model being trained. `everywhere`: all clients are recorded."""

    def __init__(self, own: Callable[[object], bool], everywhere: Callable[[], bool]) -> None:
        self._own, self._everywhere = own, everywhere

    def put(self, patches: Patches) -> None:
        """Patch AutoGen."""
        patches.family(ChatCompletionClient, {"create": self._create, "create_stream": self._create_stream})

    def _create(self, original: Any) -> Any:
        @wraps(original)
        async def create(client: Any, *args: Any, **kwargs: Any) -> Any:
            call = self._begin(client, kwargs)
            if call is None:
                return await original(client, *args, **kwargs)
            with call.here():
                try:
                    result = await original(client, *args, **kwargs)
                except BaseException as error:
                    call.fail(error)
                    raise
            call.finish(result)
            return result

        return create

    def _create_stream(self, original: Any) -> Any:
        @wraps(original)
        def create_stream(client: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return followed(original(client, *args, **kwargs), partial(self._begin, client, kwargs, stream=True), CreateResult)

        return create_stream

    def _begin(self, client: Any, kwargs: Mapping[str, Any], *, stream: bool = False) -> _Call | None:
        with guarded("a model call"):
            outer = innermost()
            asking = outer.owner if outer is not None and outer.kind == "llm" else None
            own = self._own(client) or (isinstance(asking, _Asking) and asking.own)
            if not (own or asking is not None or self._everywhere()):
                return None
            above = outer.parent if outer is not None and asking is not None else outer
            part = begin("llm", _model(client), _Asking(own), above)
            if part is None:
                return None
            if isinstance(asking, _Asking):
                asking.asked = True
            part.attributes.update(_settings(client, kwargs, stream))
            return _Call(part)
        return None


class _Asking:
    """A client during a call."""

    def __init__(self, own: bool) -> None:
        self.own = own
        self.asked = False
        """Whether it delegated to another client."""


class _Call:
    """One model call from start to end."""

    def __init__(self, part: Open) -> None:
        self.part = part
        self._asking = cast("_Asking", part.owner)
        self._routed = ModelCall(ADAPTER, part.recorder, new_id(), own=self._asking.own, agent=part.agent)

    @contextmanager
    def here(self) -> Generator[None]:
        """Assign requests sent within the block to this call."""
        with current(self.part), self._routed.here():
            yield

    def finish(self, result: Any) -> None:
        """End the call with an answer. None means that the stream ended without one."""
        attributes: dict[str, JSON] = {}
        with guarded("an answer"):
            attributes.update(_answer(result))
            self._remember_tool_calls(result)
        cached = "a cache: AutoGen answered without calling the model" if getattr(result, "cached", False) else None
        self._end(attributes, cached)

    def _remember_tool_calls(self, result: Any) -> None:
        content, recorder = getattr(result, "content", None), self.part.recorder()
        if recorder is not None and self.part.agent is not None and isinstance(content, list):
            calls = [call for call in cast("list[Any]", content) if isinstance(call, FunctionCall)]
            askers().remember(recorder, [call.id for call in calls], self.part.agent)

    def fail(self, error: BaseException) -> None:
        """End the call with an error, or because the stream's consumer left."""
        with logged(self.part):
            self._end({"error": failure(error)}, "the model call failed before a request was sent")

    def _end(self, attributes: dict[str, JSON], otherwise: str | None) -> None:
        part, sent = self.part, self._routed.sent or self._routed.elsewhere
        if part.ended:
            return
        if self._asking.asked and not sent:  # the client it delegated to has the span
            part.ended = True
            return
        call_id, unjoined = self._routed.end(otherwise=otherwise)
        if call_id is not None:
            attributes.pop("output", None)  # the completion has it
        elif unjoined is not None:
            attributes["unjoined"] = unjoined
        end(part, call_id=call_id, **attributes)


def _answer(result: Any) -> dict[str, JSON]:
    if not isinstance(result, CreateResult):
        return {}
    usage = {"input_tokens": result.usage.prompt_tokens, "output_tokens": result.usage.completion_tokens}
    attributes: dict[str, JSON] = {"output": plain(result.content), "finish_reason": result.finish_reason}
    if any(usage.values()):  # zero if the server did not report it
        attributes["usage"] = usage
    return attributes


def _settings(client: Any, kwargs: Mapping[str, Any], stream: bool) -> dict[str, JSON]:
    asked = {**mapping(getattr(client, "_create_args", None)), **mapping(kwargs.get("extra_create_args"))}
    choice = kwargs.get("tool_choice")
    if choice is not None:
        asked["tool_choice"] = choice if isinstance(choice, str) else getattr(choice, "name", None)
    if stream:
        asked["stream"] = True
    attributes: dict[str, JSON] = {"sampling": {key: plain(asked[key]) for key in SAMPLING if asked.get(key) is not None}}
    if tools := cast("Sequence[Any]", kwargs.get("tools") or ()):
        attributes["tools"] = [str(mapping(tool).get("name") or tool.name) for tool in tools]
    return attributes


def _model(client: Any) -> str:
    """Return the client's model name, or its class name without one."""
    seen: list[Any] = []
    while isinstance(client, ChatCompletionClient) and client not in seen:
        seen.append(client)
        model = mapping(getattr(client, "_create_args", None)).get("model")
        if isinstance(model, str):
            return model
        client = getattr(client, "client", None)  # for a wrapper or a cache
    return type(seen[0]).__name__ if seen else type(client).__name__
