"""Sends spans to an OpenTelemetry receiver by OTLP over HTTP, with the exporter of the SDK."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from agentlightning.errors import MissingExtra
from agentlightning.telemetry.genai import GenAISpan

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's own variables. Those of headers, certificates, compression, and timeouts apply, too."""
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.exporter.otlp.proto.http")
SERVICE = "agentlightning"


def environment_endpoint() -> str | None:
    """Return the receiver that the environment names."""
    return next((value for name in ENDPOINTS if (value := os.environ.get(name))), None)


def captures_content() -> bool:
    """Whether messages, arguments, and results may leave the machine."""
    return os.environ.get(CONTENT, "").strip().lower() in ("true", "1", "span_only", "span_and_event")


class OTLPSender:
    """Sends from one thread. `endpoint`: the address without `/v1/traces`; None: that of the environment. Raises `MissingExtra`."""

    def __init__(self, endpoint: str | None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise MissingExtra(
                "Sending rollouts to an OpenTelemetry receiver needs the SDK and its exporter. Run: pip install "
                "'agentlightning[opentelemetry]'."
            ) from error
        self._exporter = OTLPSpanExporter(endpoint=None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces")
        named = os.environ.get("OTEL_SERVICE_NAME")
        self._resource = Resource.create({} if named else {"service.name": SERVICE})
        self._scope = InstrumentationScope(SERVICE, version(SERVICE))
        self._thread: int | None = None
        self._loggers = [logging.getLogger(name) for name in LOGGERS]

    def trace(self, trace_id: int, spans: Sequence[GenAISpan]) -> list[Any]:
        """Return the SDK's spans of one trace."""
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        def context(id: int) -> SpanContext:
            return SpanContext(trace_id, id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

        return [
            ReadableSpan(
                span.name,
                context(span.id),
                None if span.parent_id is None else context(span.parent_id),
                self._resource,
                span.attributes,
                [Event(name, attributes, _nanoseconds(time)) for name, time, attributes in span.events],
                kind=SpanKind.CLIENT if span.is_call else SpanKind.INTERNAL,
                status=Status(StatusCode.UNSET) if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=_nanoseconds(span.started),
                end_time=_nanoseconds(max(span.started, span.ended)),
                instrumentation_scope=self._scope,
            )
            for span in spans
        ]

    def export(self, spans: Sequence[Any]) -> bool:
        """Send spans of the SDK. Return whether the receiver took them. Blocks until then, or up to the exporter's timeout."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        self._thread = threading.get_ident()
        for logger in self._loggers:
            logger.addFilter(self._is_of_others)
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        finally:
            for logger in self._loggers:
                logger.removeFilter(self._is_of_others)

    def close(self) -> None:
        """Give up what is being sent. From any thread."""
        self._exporter.shutdown()

    def _is_of_others(self, record: logging.LogRecord) -> bool:
        """Let the exporter complain to others. The failures here are counted, and said once."""
        return record.thread != self._thread


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
