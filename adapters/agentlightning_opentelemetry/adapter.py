"""An installation that needs no code changes."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from agentlightning.capture.clients import clients
from agentlightning.capture.model_call import find_calls
from agentlightning_opentelemetry.processor import recording
from agentlightning_opentelemetry.providers import Providers
from agentlightning_opentelemetry.spans import NAME


@cache
def _providers() -> Providers:
    """Return the patches of this process."""
    return Providers()


def install(models: Collection[str] = ()) -> None:
    """Record the OpenTelemetry spans of every rollout, without code changes.

    Idempotent. Spans of the GenAI and OpenInference conventions become agents, tools, and model calls. The program's TracerProvider is
    used, whenever it sets one; until then, one without an exporter is set here. Add a `LightningSpanProcessor` to a provider that is not
    the global one. A span that the provider does not sample is not recorded.

    Calls for the rollout's model, or to its gateway, go to that gateway regardless of their client's address. `models` lists other names or
    patterns that stand for this model. Calls for all other models are left alone, and never see the rollout's key.
    """
    clients().install(NAME, models)
    _providers().put()
    find_calls(NAME, recording().spans.find_call)
    recording().everywhere = True


def uninstall() -> None:
    """Undo `install`. Afterwards, only the spans of a provider with a `LightningSpanProcessor` of its own are recorded."""
    recording().everywhere = False
    _providers().remove()
    find_calls(NAME, None)
    clients().uninstall(NAME)


def current_span_id() -> str | None:
    """Return the id of the current tool, agent, or model call, for `agl.reward(value, span=...)`. Return None outside one."""
    span = recording().spans.current()
    levels = (span, *span.above()) if span is not None else ()
    return next((level.span_id for level in levels if level.kind_now is not None), None)
