"""`POST /v1/traces`: the OpenTelemetry spans of a program in any language, by OTLP over HTTP. An attempt's key is all that it needs.

A batch is acknowledged when the store has its records. Metrics and logs are taken and dropped, and the answer says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from dataclasses import replace
from uuid import NAMESPACE_OID, uuid5

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.capture.otel.assembly import Assembly
from agentlightning.capture.otel.meaning import EndedSpan
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import StoreError
from agentlightning.gateway.api.answers import json_response
from agentlightning.gateway.api.body import MAX_BODY, read_body
from agentlightning.gateway.api.otlp import accepted, media_type, read_spans, unpacked
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import UNKNOWN, check_open, find_attempt
from agentlightning.types import Attempt

PATH = "/v1/traces"
DROPPED = ("/v1/metrics", "/v1/logs")
"""What OpenTelemetry sends to the same address."""

log = logging.getLogger("agentlightning.gateway")


class TraceEndpoint:
    """Records the spans of the attempt whose key comes with them."""

    LIMIT = 512
    """Most attempts in memory. The longest idle ones leave first, and come back from the store."""

    def __init__(self, store: LightningStore, max_body: int = MAX_BODY) -> None:
        self._store, self._max_body = store, max_body
        self._assemblies: OrderedDict[str, Assembly] = OrderedDict()

    @property
    def routes(self) -> list[Route]:
        """The paths of OTLP."""
        return [Route(PATH, self._answer, methods=["POST"]), *(Route(path, self._drop, methods=["POST"]) for path in DROPPED)]

    async def _answer(self, request: Request) -> Response:
        try:
            attempt = await self._attempt(request)
            kind = media_type(request.headers)
            body = await read_body(request.receive, request.headers, self._max_body) or b""
            spans, invalid = await asyncio.to_thread(lambda: read_spans(unpacked(body, request.headers, self._max_body), kind))
            assembly = await self._assembly(attempt)
            try:
                await self._store.record(assembly.add([_of(attempt, span) for span in spans]))
            except BaseException:
                self._assemblies.pop(attempt.id, None)  # the sender tries again, and must not find its spans there
                raise
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        except StoreError as error:
            log.error("The store did not take the spans of a program: %s", error)
            return json_response(Refused(f"The store did not take the spans: {error}. Send them again.").body, 503)
        return Response(accepted(kind, invalid, "A span needs an id and a trace id." if invalid else ""), media_type=kind)

    async def _drop(self, request: Request) -> Response:
        try:
            await self._attempt(request)
            kind = media_type(request.headers)
            await read_body(request.receive, request.headers, self._max_body)
        except Refused as refusal:
            return json_response(refusal.body, refusal.status)
        return Response(accepted(kind, 0, "This gateway keeps traces alone."), media_type=kind)

    async def _attempt(self, request: Request) -> Attempt:
        """The attempt of a key. Raises `Refused` (401) unless it is running: spans that come later have nobody who reads them."""
        owner = await find_attempt(self._store, request.headers)
        if owner is None:
            raise Refused(UNKNOWN, status=401, code="invalid_api_key")
        check_open(owner[1])
        return owner[1]

    async def _assembly(self, attempt: Attempt) -> Assembly:
        if attempt.id not in self._assemblies:
            recorded = (await self._store.records(attempt.id)).spans
            self._assemblies.setdefault(attempt.id, Assembly(attempt.id, recorded))
            while len(self._assemblies) > self.LIMIT:
                self._assemblies.popitem(last=False)
        self._assemblies.move_to_end(attempt.id)
        return self._assemblies[attempt.id]


def _of(attempt: Attempt, span: EndedSpan) -> EndedSpan:
    """The span with ids of its attempt. OpenTelemetry draws them from `random`, which programs seed: their rollouts have the same ids."""
    return replace(span, id=_id(attempt, span.id), parent_id=None if span.parent_id is None else _id(attempt, span.parent_id))


def _id(attempt: Attempt, id: str) -> str:
    return uuid5(NAMESPACE_OID, f"{attempt.id} {id}").hex
