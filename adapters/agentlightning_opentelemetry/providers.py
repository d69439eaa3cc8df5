"""The global TracerProvider: it gets our processor, and it is the program's own if that sets one.

A program may set its provider after the adapter is installed, and OpenTelemetry takes the first one only. So a provider of ours gives way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from random import SystemRandom
from typing import Any
from weakref import WeakSet

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.util._once import Once

from agentlightning.errors import ConfigError
from agentlightning_opentelemetry.processor import LightningSpanProcessor


class UniqueIds(RandomIdGenerator):
    """The SDK's ids, from a source that no program can seed. Rollouts that seed `random` alike would have the same ids."""

    def generate_span_id(self) -> int:
        """See `IdGenerator`."""
        return 1 + SystemRandom().randrange(2**64 - 1)

    def generate_trace_id(self) -> int:
        """See `IdGenerator`."""
        return 1 + SystemRandom().randrange(2**128 - 1)


class Providers:
    """The processors of this process, and the patch of `set_tracer_provider`."""

    def __init__(self) -> None:
        self._ours: TracerProvider | None = None
        self._set_provider: Callable[[trace.TracerProvider], None] | None = None
        self._with_processor: WeakSet[Any] = WeakSet()

    def put(self) -> None:
        """Add our processor to the global provider, and to one that the program sets later. Idempotent."""
        if self._set_provider is not None:
            return
        self._set_provider = set_provider = trace.set_tracer_provider
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            # our own keeps every attribute: the first ones of a long span say what it is
            self._ours = TracerProvider(span_limits=SpanLimits(max_attributes=SpanLimits.UNSET, max_span_attributes=SpanLimits.UNSET))
            trace.set_tracer_provider(self._ours)
            provider = self._ours
        self._add(provider)

        @wraps(set_provider)
        def set_in_place_of_ours(provider: trace.TracerProvider) -> None:
            if self._ours is not None and trace.get_tracer_provider() is self._ours:
                hidden: Any = trace
                hidden._TRACER_PROVIDER, hidden._TRACER_PROVIDER_SET_ONCE, self._ours = None, Once(), None
            set_provider(provider)
            if trace.get_tracer_provider() is provider:
                self._add(provider)

        trace.set_tracer_provider = set_in_place_of_ours

    def remove(self) -> None:
        """Undo the patch. A provider keeps the processor, which then records nothing."""
        if self._set_provider is not None:
            trace.set_tracer_provider = self._set_provider
            self._set_provider = None

    def _add(self, provider: Any) -> None:
        if not hasattr(provider, "add_span_processor"):
            raise ConfigError(
                f"The global TracerProvider is a {type(provider).__name__}, which takes no span processors. Set one of "
                "opentelemetry.sdk.trace."
            )
        if provider not in self._with_processor:
            self._with_processor.add(provider)
            provider.add_span_processor(LightningSpanProcessor(everywhere=True))
        if type(getattr(provider, "id_generator", None)) is RandomIdGenerator:
            provider.id_generator = UniqueIds()
