"""Sends the model requests of HTTP libraries to the gateway of the current rollout: `httpx`, `httpx2`, `requests`, `aiohttp`, `botocore`.

So every client that one of them carries is routed: Anthropic's, litellm, LangChain's classes, a program's own requests. A request that has
our headers is addressed already, by the patch of `openai` or by the library above.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from agentlightning.capture.addressing import REPLACED, address
from agentlightning.capture.forms import FormOfAddress, form_of
from agentlightning.capture.library_patch import LibraryPatch
from agentlightning.capture.recorder import CALL_HEADER, KEY_HEADER
from agentlightning.capture.routing import ClientRequest
from agentlightning.capture.to_json import mapping
from agentlightning.errors import RoutingError

OWN_CLIENT = "agentlightning_own_client"
"""Attribute of a client of ours, such as an engine's. Its requests are no agent's."""
STAINLESS = "x-stainless-lang"
"""Header of the SDKs of OpenAI, Anthropic, and others. They replace the text of an exception by "Connection error.", and try again. So
they get our errors as an answer."""


@dataclass(frozen=True, slots=True)
class Routed:
    """A request to the gateway in place of a client's."""

    url: str
    headers: dict[str, str]
    body: bytes


def model_form(method: str, url: str, headers: Mapping[str, Any]) -> FormOfAddress | None:
    """The form of a request that may belong to a rollout, so that its body is worth reading."""
    if method.upper() != "POST" or KEY_HEADER in headers or CALL_HEADER in headers:
        return None
    return form_of(url)


def routed(form: FormOfAddress, url: str, headers: Mapping[str, Any], body: Any, models: Collection[str]) -> Routed | None:
    """The request in the name of its rollout. None: it goes where it says. Raises `RoutingError`."""
    fields = _json(body)
    if fields is None or (form.field is not None and form.field not in fields):
        return None
    addressed = address(ClientRequest(url, form.base_url, fields.get("model", form.model), foreign=form.foreign), models, fields)
    if addressed is None:
        return None
    content = json.dumps(addressed.body(fields)).encode()
    unfitting = ("host", "content-length", "content-type", "content-encoding", "transfer-encoding")
    sent = {name: value for name, value in headers.items() if name.lower() not in unfitting}
    # One body again, in one model call of a framework, is a retry.
    return Routed(
        addressed.url,
        {**addressed.headers(sent, hashlib.sha256(content).hexdigest()), "Content-Type": "application/json"},
        content,
    )


def _json(body: Any) -> Mapping[str, Any] | None:
    if not isinstance(body, str | bytes | bytearray):
        return None
    try:
        return mapping(json.loads(body))
    except ValueError:
        return None


class HttpxPatch(LibraryPatch):
    library = "httpx"
    methods = (("Client", "send"), ("AsyncClient", "send"))

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        if owner.__name__ == "Client":

            def send(client: Any, request: Any, **options: Any) -> Any:
                form = _form(client, request)
                if form is None:
                    return original(client, request, **options)
                request.read()
                return self._send(original, client, form, request, options)

            return send

        async def send_async(client: Any, request: Any, **options: Any) -> Any:
            form = _form(client, request)
            if form is None:
                return await original(client, request, **options)
            await request.aread()
            # A client that outlives an event loop must not keep connections of the old one.
            answer = self._send(original, client, form, request, options, Connection="close")
            return await answer if hasattr(answer, "__await__") else answer

        return send_async

    def _send(
        self, original: Callable[..., Any], client: Any, form: FormOfAddress, request: Any, options: dict[str, Any], **also: str
    ) -> Any:
        try:
            to = routed(form, str(request.url), request.headers, request.content, self.models())
        except RoutingError as error:
            if STAINLESS not in request.headers:
                raise
            answer = {"type": "error", "error": {"type": "invalid_request_error", "message": str(error)}}
            return import_module(self.library).Response(400, json=answer, request=request)
        if to is None:
            return original(client, request, **options)
        extensions = request.extensions
        request = type(request)("POST", to.url, headers=to.headers | also, content=to.body, extensions=extensions)
        return original(client, request, **{**options, "auth": None})


class Httpx2Patch(HttpxPatch):
    """The library with this name, of newer SDKs of OpenAI and Anthropic."""

    library = "httpx2"


def _form(client: Any, request: Any) -> FormOfAddress | None:
    return None if getattr(client, OWN_CLIENT, False) else model_form(request.method, str(request.url), request.headers)


class RequestsPatch(LibraryPatch):
    library = "requests"
    methods = (("Session", "send"),)

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        def send(session: Any, request: Any, **options: Any) -> Any:
            form = model_form(request.method, request.url, request.headers)
            to = routed(form, request.url, request.headers, request.body, self.models()) if form is not None else None
            if to is not None:
                request = request.copy()
                request.prepare_url(to.url, None)
                request.prepare_headers(to.headers)
                request.prepare_body(to.body, None)
            return original(session, request, **options)

        return send


class AiohttpPatch(LibraryPatch):
    library = "aiohttp"
    methods = (("ClientSession", "_request"),)

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        async def request(session: Any, method: str, str_or_url: Any, **options: Any) -> Any:
            address = session._build_url(str_or_url)
            if options.get("params"):
                address = address.update_query(options["params"])
            headers = session._prepare_headers(options.get("headers"))
            form = model_form(method, str(address), headers)
            to = routed(form, str(address), headers, _aiohttp_body(session, options), self.models()) if form is not None else None
            if to is not None:
                # The session adds its own headers again, so ours replace them.
                key = to.headers[KEY_HEADER]
                keys = {name: key for name in session.headers if name.lower() in REPLACED and name not in to.headers}
                options = {**options, "headers": to.headers | keys, "data": to.body, "json": None, "params": None, "auth": None}
                str_or_url = to.url
            return await original(session, method, str_or_url, **options)

        return request


def _aiohttp_body(session: Any, options: Mapping[str, Any]) -> Any:
    """The body as text or bytes, if it is one."""
    if options.get("json") is not None:
        return session.json_serialize(options["json"])
    data = options.get("data")
    return getattr(data, "_value", data)  # of a payload object


class BotocorePatch(LibraryPatch):
    """Bedrock's clients. Nothing of theirs reaches a gateway, but their requests must not leave a rollout."""

    library = "botocore.httpsession"
    methods = (("URLLib3Session", "send"),)

    def wrap(self, owner: type, original: Callable[..., Any]) -> Callable[..., Any]:
        def send(session: Any, request: Any) -> Any:
            form = model_form(request.method, request.url, request.headers)
            if form is not None and form.foreign is not None:
                routed(form, request.url, request.headers, request.body, self.models())
            return original(session, request)

        return send


HTTP_PATCHES = (HttpxPatch, Httpx2Patch, RequestsPatch, AiohttpPatch, BotocorePatch)
