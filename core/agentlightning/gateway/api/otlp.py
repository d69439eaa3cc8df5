"""OTLP over HTTP, in protobuf and JSON: the spans of a request, and the answers. Pure.

Protobuf needs the package `opentelemetry-proto`; JSON needs none.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, cast

from agentlightning.capture.otel.meaning import EndedSpan
from agentlightning.capture.to_json import mapping
from agentlightning.errors import MissingExtra
from agentlightning.gateway.api.body import read_fields
from agentlightning.gateway.api.schema import Refused

PROTOBUF, JSON = "application/x-protobuf", "application/json"
FAILED = (2, "STATUS_CODE_ERROR")
Fields: TypeAlias = Mapping[str, Any]


def media_type(headers: Mapping[str, str]) -> str:
    """Return the media type of a request. Raises `Refused` (415) for one that OTLP does not have."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (PROTOBUF, JSON):
        raise Refused(f"The content type is {kind!r}, which is not OTLP. Send {PROTOBUF} or {JSON}.", status=415, code="unsupported_type")
    return kind


def unpacked(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    """Return the body without its compression. Raises `Refused` for more than `limit` bytes, and for a body that is not gzip."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding != "gzip":
        raise Refused(f"The content encoding is {encoding!r}. Send gzip, or none.", status=415, code="unsupported_encoding")
    reader = zlib.decompressobj(wbits=31)
    try:
        text = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(f"The body is not gzip: {error}. Send it as its content encoding says.") from error
    if len(text) > limit:
        raise Refused(f"The body has more than {limit} bytes. Send smaller batches.", status=413, code="request_too_large")
    if not reader.eof:
        raise Refused("The body ends in the middle of its gzip data. Send all of it.")
    return text


def read_spans(body: bytes, kind: str) -> tuple[list[EndedSpan], int]:
    """Return the spans of an export request, and the number of those that have no id. Raises `Refused` for another body."""
    fields, id_of = (_from_protobuf(body), _from_base64) if kind == PROTOBUF else (read_fields(body), str)
    try:
        spans = [_span(span, scope, id_of) for scope, span in _spans(fields)]
    except (TypeError, ValueError, AttributeError) as error:
        raise Refused(f"The body is no OTLP trace: {error}. Send an ExportTraceServiceRequest.") from error
    valid = [span for span in spans if span is not None]
    return valid, len(spans) - len(valid)


def accepted(kind: str, rejected: int = 0, message: str = "") -> bytes:
    """Return the answer to an export request. `rejected`: the number of spans that were not taken, for the reason `message`."""
    if kind == JSON:
        partial = f'{{"rejectedSpans":"{rejected}","errorMessage":"{message}"}}'
        return f'{{"partialSuccess":{partial}}}'.encode() if message else b"{}"
    text = message.encode()
    partial = (b"\x08" + _varint(rejected) if rejected else b"") + (b"\x12" + _varint(len(text)) + text if text else b"")
    return b"\x0a" + _varint(len(partial)) + partial if partial else b""


def has_protobuf() -> bool:
    """Whether this environment reads protobuf."""
    try:
        _message()
    except MissingExtra:
        return False
    return True


def _message() -> Any:
    try:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError as error:
        raise MissingExtra(
            "OTLP in protobuf needs opentelemetry-proto, which is not installed beside the gateway. Run: pip install "
            "'agentlightning[opentelemetry]'. Or send JSON (OTEL_EXPORTER_OTLP_PROTOCOL=http/json)."
        ) from error
    return ExportTraceServiceRequest()


def _from_protobuf(body: bytes) -> dict[str, Any]:
    try:
        message = _message()
    except MissingExtra as error:
        raise Refused(str(error), status=415, code="unsupported_type") from error
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Refused(f"The body is no protobuf: {error}. Send an ExportTraceServiceRequest.") from error
    return MessageToDict(message)


def _from_base64(text: Any) -> str:
    return base64.b64decode(text).hex()


def _spans(fields: Fields) -> Iterator[tuple[str, Fields]]:
    """Yield each span with the name of its instrumentation."""
    for resource in _list(fields, "resourceSpans"):
        for scope in _list(resource, "scopeSpans"):
            name = str(mapping(scope.get("scope")).get("name") or "")
            yield from ((name, span) for span in _list(scope, "spans"))


def _span(span: Fields, scope: str, id_of: Callable[[Any], str]) -> EndedSpan | None:
    span_id, trace_id, parent = (id_of(span.get(key) or "").lower() for key in ("spanId", "traceId", "parentSpanId"))
    if len(span_id) != 16 or len(trace_id) != 32:
        return None
    status = mapping(span.get("status"))
    return EndedSpan(
        id=span_id + trace_id,
        parent_id=parent + trace_id if parent.strip("0") else None,
        name=str(span.get("name") or ""),
        scope=scope,
        started=int(span.get("startTimeUnixNano") or 0) / 1e9,
        ended=int(span.get("endTimeUnixNano") or 0) / 1e9,
        attributes=_attributes(span),
        events=tuple((str(event.get("name") or ""), _attributes(event)) for event in _list(span, "events")),
        failed=status.get("code") in FAILED,
        error=status.get("message"),
    )


def _attributes(fields: Fields) -> dict[str, Any]:
    return {str(item.get("key")): _value(mapping(item.get("value"))) for item in _list(fields, "attributes")}


def _value(value: Fields) -> Any:
    """Return the value of an AnyValue."""
    for kind, item in value.items():
        if kind == "arrayValue":
            return [_value(mapping(member)) for member in _list(mapping(item), "values")]
        if kind == "kvlistValue":
            return {str(member.get("key")): _value(mapping(member.get("value"))) for member in _list(mapping(item), "values")}
        return int(item) if kind == "intValue" else float(item) if kind == "doubleValue" else item
    return None


def _list(fields: Fields, name: str) -> list[Fields]:
    items: Any = fields.get(name) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in cast("list[Any]", items)):
        raise ValueError(f"{name} is no list of objects")
    return cast("list[Fields]", items)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])
