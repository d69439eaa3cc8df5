"""The tracing processor, and an installation that needs no code changes.

The SDK calls processors in the context of the call, so a request can find its model call.

A processor never changes the agent's behaviour. It logs each recording fault once and leaves a note in the attempt. If the store rejects
records, the rollout fails at its end, because the SDK only logs errors of processors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

from agents import Span, Trace, TracingProcessor
from agents.tracing import GenerationSpanData, GuardrailSpanData, ResponseSpanData, TurnSpanData, get_current_span, get_current_trace

from agentlightning.capture import open_runs
from agentlightning.capture.clients import clients
from agentlightning.capture.model_call import ModelCall
from agentlightning.capture.recorder import Recorder, detached
from agentlightning.capture.recorder import current as current_recorder
from agentlightning.capture.to_json import failure
from agentlightning.errors import LightningError
from agentlightning.types import Span as Recorded
from agentlightning_openai_agents import content, defaults
from agentlightning_openai_agents.runs import Run, Runs

log = logging.getLogger(__name__)
NAME = "agentlightning_openai_agents"
DISABLED = (
    "Tracing of the OpenAI Agents SDK is disabled (set_tracing_disabled, OPENAI_AGENTS_DISABLE_TRACING, or RunConfig.tracing_disabled). "
    "Model calls are recorded without agent, turn, and tools. Enable tracing during rollouts. install() sends no traces to OpenAI."
)
REPLACED = (
    "set_trace_processors replaced the OpenAI Agents SDK's trace processors after agentlightning_openai_agents.install(). Model calls are "
    "recorded without agent, turn, and tools. Call install() afterwards, or include LightningTracingProcessor()."
)
WITHHELD = (
    "Trace content is disabled (RunConfig.trace_include_sensitive_data, OPENAI_AGENTS_TRACE_INCLUDE_SENSITIVE_DATA). Spans have no inputs "
    "and outputs, and tools have no tool_call_id. Tokens are still recorded."
)
AnySpan: TypeAlias = Span[Any]


class Installation:
    """Process-wide state: the open runs, the logged faults, and the replaced defaults."""

    def __init__(self) -> None:
        self.runs = Runs()
        self.complained: set[str] = set()
        self.noted: WeakKeyDictionary[Recorder, set[str]] = WeakKeyDictionary()
        self.processor: LightningTracingProcessor | None = None

    def say(self, text: str, recorder: Recorder | None, *, key: str | None = None, error: Exception | None = None) -> None:
        """Log a problem once in this process, and note it once in the attempt."""
        key = key or text
        if key not in self.complained:
            self.complained.add(key)
            log.log(logging.WARNING if error is None else logging.ERROR, text, exc_info=error)
        if recorder is not None and key not in self.noted.setdefault(recorder, set()):
            self.noted[recorder].add(key)
            with suppress(RuntimeError):  # the rollout's event loop is closed
                recorder.add(Recorded(attempt_id=recorder.attempt.id, kind="note", name=text, attributes={"source": "openai_agents"}))

    def unclaimed(self, recorder: Recorder, options: Any) -> None:
        """Check whether a request without a model call came from the SDK, and tracing is off."""
        current = get_current_span()
        # An ended call may still be current, because an abandoned stream is closed from another task.
        if current is not None and current.ended_at is None and isinstance(current.span_data, GenerationSpanData | ResponseSpanData):
            self.say(DISABLED if current.span_id == "no-op" else REPLACED, recorder)


@cache
def installation() -> Installation:
    """Return this process's state. It is cached because the SDK's processors and default client are process-wide too."""
    return Installation()


def install(models: Collection[str] = ()) -> None:
    """Record every run of the OpenAI Agents SDK during a rollout, without code changes.

    Idempotent. Calls through the SDK's default client go to the rollout's gateway, whatever model they name. This client is set here unless
    the program has set one. Calls through other clients go there if they name the rollout's model or address, or match `models`. `models`
    lists names or patterns that stand for the rollout's model. All other calls are left alone, and never see the rollout's key.

    During rollouts, nothing is exported to OpenAI's tracing backend. The program's own processors stay, and see everything.
    """
    clients().install(NAME, models, unclaimed=installation().unclaimed)
    here = installation()
    if here.processor is None:
        here.processor = LightningTracingProcessor(everywhere=True)
    defaults.put(here.processor)


def uninstall() -> None:
    """Undo `install`. Afterwards, only a new `LightningTracingProcessor` records runs."""
    here = installation()
    if here.processor is not None:
        defaults.remove(here.processor)
        here.processor = None
    clients().uninstall(NAME)


def current_span_id() -> str | None:
    """Return the id of the current tool or agent span, for `agl.reward(value, span=...)`. Return None outside a span."""
    current = get_current_span()
    run = installation().runs.get(current.span_id) if current is not None else None
    recorded = run.recorded() if run is not None else None
    return recorded.span_id if recorded is not None else None


class LightningTracingProcessor(TracingProcessor):
    """Records agents, handoffs, tools, guardrails, and model calls in the current rollout.

    Pass it to `agents.set_trace_processors([LightningTracingProcessor()])`. With `add_trace_processor`, the SDK's exporter stays active and
    sends traces to OpenAI. If the context is lost (a bare thread), the parent span's rollout is used, or else the one in which this object
    was created.

    `install` does all of this with its own processor (`everywhere`), which belongs to no rollout.
    """

    def __init__(self, *, everywhere: bool = False) -> None:
        self._everywhere = everywhere
        self._recorder = None if everywhere else current_recorder()
        self._here = installation()
        self._runs = self._here.runs
        clients().install(NAME, unclaimed=self._here.unclaimed)

    @property
    def active(self) -> bool:
        return not self._everywhere or self._here.processor is self

    def on_trace_start(self, trace: Trace) -> None:
        """Do nothing. A trace is recorded through its spans."""

    def on_trace_end(self, trace: Trace) -> None:
        """Do nothing."""

    def on_span_start(self, span: AnySpan) -> None:
        """Open a span in the current rollout."""
        self._safely(self._start, span)

    def on_span_end(self, span: AnySpan) -> None:
        """Record a span in the rollout where it was opened."""
        self._safely(self._end, span)

    def shutdown(self) -> None:
        """Do nothing. Every span goes to its rollout when it ends."""

    def force_flush(self) -> None:
        """Do nothing. The end of a rollout waits for its records."""

    def _safely(self, event: Callable[[AnySpan], None], span: AnySpan) -> None:
        """Log each kind of adapter fault once and note it in the attempt, because the SDK would hide it."""
        if not self.active:
            return
        try:
            event(span)
        except LightningError:
            raise
        except Exception as error:
            text = f"the adapter of the OpenAI Agents SDK could not record a span of {span.span_data.type!r}: {failure(error)}"
            recorder = self._find(self._runs.get(span.parent_id))
            self._here.say(text, recorder, key=f"{event.__name__} {type(error).__name__}", error=error)

    def _find(self, parent: Run | None) -> Recorder | None:
        return None if detached() else current_recorder() or (parent.recorder() if parent is not None else None) or self._recorder

    def _start(self, span: AnySpan) -> None:
        parent = self._runs.get(span.parent_id)
        recorder = self._find(parent)
        if recorder is None:
            return
        data = span.span_data
        kind = content.kind(data)
        run = Run(
            id=span.span_id, name=content.name(data), kind=kind, parent=parent, recorder=ref(recorder),
            agent=parent.agent if parent is not None else None,
        )  # fmt: skip
        if isinstance(data, TurnSpanData):
            run.agent, run.turn = data.agent_name, data.turn
        elif kind == "agent":
            run.agent = run.name
        trace = get_current_trace()
        if trace is not None and (parent is None or parent.recorded() is None):
            run.attributes["workflow"] = trace.name
        if self._runs.start(recorder, run) and kind == "llm":
            run.call = ModelCall.start(NAME, recorder, agent=run.agent)

    def _end(self, span: AnySpan) -> None:
        ended = self._runs.end(span.span_id)
        if ended is None or ended[0].kind is None:
            return
        run, recorder = ended
        data = span.span_data
        if run.call is not None:
            self._answered(run, run.call, recorder, span)
            return
        run.name = content.name(data)
        run.attributes.update(content.told(data, failed=span.error is not None))
        run.attributes.update(content.error(span.error))
        if run.kind == "tool" and not isinstance(data, GuardrailSpanData):
            tool_call_id = self._runs.asked_by(run, data.input)
            if tool_call_id is not None:
                run.attributes["tool_call_id"] = tool_call_id
        recorder.add(open_runs.span(run, recorder))

    def _answered(self, run: Run, call: ModelCall, recorder: Recorder, sdk_span: AnySpan) -> None:
        data = sdk_span.span_data
        run.name = str(call.asked.get("model") or run.name)
        run.attributes.update(content.asked(call.asked))
        run.attributes.update(content.answer(data))
        run.attributes.update(content.error(sdk_span.error))
        scope = run.scope()
        if scope is not None and scope.turn is not None:
            run.attributes["turn"] = scope.turn
        self._runs.answered(run, content.tool_calls(data))
        failed = "the model call failed before a request was sent" if sdk_span.error is not None else None
        call_id, why = call.end(content.answered_by(data), otherwise=failed)
        if why is not None:
            run.attributes["unjoined"] = why
        else:
            run.attributes.pop("output", None)  # the completion has it
        if content.withheld(data):
            self._here.say(WITHHELD, recorder)
        recorder.add(open_runs.span(run, recorder, call_id=call_id))
