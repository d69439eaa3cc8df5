"""The callback, and an installation that works without it.

Handlers run inline, in the thread and context of the call, so a request can find its model call.

A handler never changes the agent's behaviour. It logs each recording fault once and leaves a note in the attempt. It raises only the
recorder's own errors, because records rejected by the store must not disappear silently.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook

from agentlightning.capture.askers import Askers
from agentlightning.capture.clients import clients
from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.open_runs import span
from agentlightning.capture.recorder import Recorder, detached
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import failure
from agentlightning.errors import LightningError
from agentlightning.types import JSON, Span
from agentlightning_langchain.graphs import starting_graph
from agentlightning_langchain.joining import join
from agentlightning_langchain.runs import Run, Runs, chain_run, leaf_run
from agentlightning_langchain.values import answer_attributes, error_attributes, plain, tool_call_ids, tool_name

log = logging.getLogger(__name__)
P = ParamSpec("P")
SAMPLING = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "n", "presence_penalty", "frequency_penalty",
    "reasoning_effort", "tool_choice", "stream",
)  # fmt: skip
"""Settings of a model call that its span keeps, as the agent requested them. The completion has the settings actually used."""
NAME = "agentlightning_langchain"
RETRY = re.compile(r"retry:attempt:(\d+)")


class Installation:
    """Process-wide state: the open runs, and whether every call is recorded."""

    def __init__(self) -> None:
        self.runs = Runs()
        self.askers = Askers()
        self.everywhere = False
        self.complained: set[str] = set()
        self._registered = False

    def register(self) -> None:
        """Add a handler to every callback manager. LangChain cannot remove it, so the handler checks `everywhere`."""
        if not self._registered:
            everywhere = Everywhere()
            handler: ContextVar[Everywhere | None] = ContextVar("agentlightning_langchain_handler", default=everywhere)
            # An agent with its own callback needs no second handler.
            register_configure_hook(handler, inheritable=True, handle_class=LightningCallback)
            self._registered = True


@cache
def installation() -> Installation:
    """Return this process's state. It is cached because LangChain's hooks are process-wide too."""
    return Installation()


def install(models: Collection[str] = ()) -> None:
    """Record every LangChain and LangGraph call during a rollout, without code changes.

    Idempotent. Calls for the rollout's model, or to its gateway, go to that gateway regardless of their client's address. `models` lists
    other names or patterns that stand for this model. For example, `install(models=["gpt-4o-mini"])` trains an agent that uses
    `ChatOpenAI(model="gpt-4o-mini")`. Calls for all other models are left alone, and never see the rollout's key.
    """
    clients().install(NAME, models)
    here = installation()
    here.everywhere = True
    here.register()


def uninstall() -> None:
    """Undo `install`. Afterwards, only calls with a new `LightningCallback` are recorded."""
    installation().everywhere = False
    clients().uninstall(NAME)


def current_span_id() -> str | None:
    """Return the id of the current tool, node, or agent span, for `agl.reward(value, span=...)`. Return None outside a span."""
    config = cast("Mapping[str, Any]", var_child_runnable_config.get() or {})
    run = installation().runs.get(getattr(config.get("callbacks"), "parent_run_id", None))
    recorded = run.recorded() if run is not None else None
    return recorded.span_id if recorded is not None else None


def _safe(event: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Log an adapter fault instead of raising it into the agent."""

    @wraps(event)
    def safe(self: LightningCallback, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.active:
            return
        try:
            event(self, *args, **kwargs)
        except LightningError:
            raise
        except Exception as error:
            self.complain(event.__name__, error, kwargs)

    return safe


class LightningCallback(BaseCallbackHandler):
    """Records agents, nodes, tools, and model calls in the current rollout.

    Pass it to `invoke`, `ainvoke`, `stream`, `astream`, `batch`, or `abatch` as `config={"callbacks": [LightningCallback()]}`. If the
    context is lost (a bare thread), the parent run's rollout is used, or else the one in which this object was created.
    """

    run_inline = True
    raise_error = True  # for errors that `_safe` lets through

    def __init__(self) -> None:
        self._recorder = current_recorder()
        self._here = installation()
        self._runs = self._here.runs
        clients().install(NAME)

    @property
    def active(self) -> bool:
        return True

    def complain(self, event: str, error: Exception, event_arguments: Mapping[str, Any]) -> None:
        """Log each kind of fault once and note it in the attempt."""
        text = f"the LangChain adapter could not record {event}: {failure(error)}"
        if (kind := f"{event} {type(error).__name__}") not in self._here.complained:
            self._here.complained.add(kind)
            log.error(text, exc_info=error)
        recorder = self._find(self._runs.get(event_arguments.get("parent_run_id")))
        if recorder is not None:
            with suppress(RuntimeError):  # the rollout's event loop is closed
                recorder.add(Span(attempt_id=recorder.attempt.id, kind="note", name=text, attributes={"source": "langchain"}))

    def _find(self, parent: Run | None) -> Recorder | None:
        return None if detached() else current_recorder() or (parent.recorder() if parent is not None else None) or self._recorder

    def _finish(self, run_id: UUID, **attributes: JSON) -> None:
        ended = self._runs.end(run_id)
        if ended is not None and ended[0].kind is not None:
            run, recorder = ended
            run.attributes.update(attributes)
            recorder.add(span(run, recorder))

    # Agents, graphs and nodes

    @_safe
    def on_chain_start(
        self, serialized: dict[str, Any], inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        parent = self._runs.get(parent_run_id)
        recorder = self._find(parent)
        if recorder is not None:
            run = chain_run(run_id, parent, _name(serialized, kwargs), starting_graph(), tags or (), metadata or {}, recorder)
            run.retry = _retry(tags or (), parent)
            self._runs.start(recorder, run)

    @_safe
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._finish(run_id)

    @_safe
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        if isinstance(error, asyncio.CancelledError):
            for call in self._runs.model_calls_below(run_id):  # LangChain reports no end for a cancelled model call
                self._model_end(call.id, None, error_attributes(error))
        self._finish(run_id, **error_attributes(error))

    # Tools, and retrievers, which count as tools without a name in the request

    @_safe
    def on_tool_start(
        self, serialized: dict[str, Any], input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        tool_input = input_str if inputs is None else inputs
        self._tool_start(_name(serialized, kwargs), tool_input, run_id, parent_run_id, metadata or {}, kwargs.get("tool_call_id"))

    @_safe
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        result = plain(output.content if isinstance(output, ToolMessage) else output)
        failed = isinstance(output, ToolMessage) and output.status == "error"
        self._finish(run_id, **{"error" if failed else "output": result})

    @_safe
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._finish(run_id, **error_attributes(error))

    @_safe
    def on_retriever_start(
        self,
        serialized: dict[str, Any],
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._tool_start(_name(serialized, kwargs), query, run_id, parent_run_id, metadata or {}, None)

    @_safe
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        self._finish(run_id, output=plain(documents))

    @_safe
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._finish(run_id, **error_attributes(error))

    def _tool_start(
        self, name: str, tool_input: Any, run_id: UUID, parent_run_id: UUID | None, metadata: Mapping[str, Any], tool_call_id: str | None
    ) -> None:
        parent = self._runs.get(parent_run_id)
        recorder = self._find(parent)
        if recorder is not None:
            run = leaf_run(run_id, "tool", parent, name, metadata, recorder)
            run.agent = self._here.askers.find(recorder, tool_call_id) or run.agent
            run.attributes["input"] = plain(tool_input)
            if tool_call_id is not None:
                run.attributes["tool_call_id"] = tool_call_id
            self._runs.start(recorder, run)

    # Model calls

    @_safe
    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self._model_start(serialized, run_id, parent_run_id, tags or [], metadata or {}, kwargs)

    @_safe
    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, parent_run_id: UUID | None = None,
        tags: list[str] | None = None, metadata: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self._model_start(serialized, run_id, parent_run_id, tags or [], metadata or {}, kwargs)

    def _model_start(
        self, serialized: dict[str, Any] | None, run_id: UUID, parent_run_id: UUID | None, tags: Sequence[str],
        metadata: Mapping[str, Any], kwargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        parent = self._runs.get(parent_run_id)
        recorder = self._find(parent)
        if recorder is None:
            return
        asked = cast("Mapping[str, Any]", kwargs.get("invocation_params") or {})
        name = asked.get("model") or asked.get("model_name") or metadata.get("ls_model_name") or _name(serialized, kwargs)
        run = leaf_run(run_id, "llm", parent, str(name), metadata, recorder)
        run.retry = _retry(tags, parent)
        run.prompts = int(kwargs.get("batch_size") or 1)
        run.attributes["sampling"] = {key: plain(asked[key]) for key in SAMPLING if asked.get(key) is not None}
        if tools := cast("Sequence[Any]", asked.get("tools") or ()):
            run.attributes["tools"] = [tool_name(tool) for tool in tools]
        if run.retry is not None:
            run.attributes["retry"] = run.retry
        if self._runs.start(recorder, run):
            run.call = ModelCall.start(NAME, recorder, run_id.hex, agent=run.agent)

    @_safe
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self._model_end(run_id, response, answer_attributes(response))

    @_safe
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._model_end(run_id, cast("LLMResult | None", kwargs.get("response")), error_attributes(error))

    def _model_end(self, run_id: Hashable, response: LLMResult | None, attributes: dict[str, JSON]) -> None:
        ended = self._runs.end(run_id)
        if ended is not None:
            run, recorder = ended
            run.attributes.update(attributes)
            if run.agent is not None and response is not None:
                self._here.askers.remember(recorder, tool_call_ids(response), run.agent)
            call_id = join(run, run.call, response) if run.call is not None else None
            if call_id is not None:
                run.attributes.pop("output", None)  # the completion has it
            recorder.add(span(run, recorder, call_id=call_id))


class Everywhere(LightningCallback):
    """The handler of `install`: present in every callback manager, and silent after `uninstall`."""

    def __init__(self) -> None:
        super().__init__()
        self._recorder = None  # installed once, perhaps during a rollout that it must not belong to

    @property
    def active(self) -> bool:
        return self._here.everywhere


def _name(serialized: Mapping[str, Any] | None, kwargs: Mapping[str, Any]) -> str:
    description = serialized or {}
    identity = cast("Sequence[Any]", description.get("id") or ("unnamed",))
    return str(kwargs.get("name") or description.get("name") or identity[-1])


def _retry(tags: Sequence[str], parent: Run | None) -> int | None:
    """Return the attempt number of `with_retry`. The tag is on the attempt's outermost run."""
    for tag in tags:
        if (match := RETRY.fullmatch(tag)) is not None:
            return int(match[1])
    return parent.retry if parent is not None and parent.kind is None else None
