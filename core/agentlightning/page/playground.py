"""The playground: asks the served policy and its model before training, starting from a recorded call."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import LightningError
from agentlightning.page.access import HEADERS, Access, failure
from agentlightning.page.library import Library, Source
from agentlightning.serving.playground import SIDES, Playground, Side
from agentlightning.types import JSON

LATEST = 20
"""Rollouts in which the agent's messages and tools are looked for."""


async def facts(library: Library, playground: Playground | None, source: str) -> dict[str, JSON]:
    """What the playground can ask, or how to get one, and the latest call of the agent."""
    names = [source] if source else [*library.runs(), *library.stores] if playground is not None else []
    return {"served": _served(playground), "how": None if playground else _how(library, source), "agent": await _agent(library, names)}


def _served(playground: Playground | None) -> dict[str, JSON] | None:
    if playground is None:
        return None
    return {
        "model": playground.engine.info.model,
        "version": playground.engine.policy.version,
        "weights": playground.weights,
        "base": playground.has_base,
        "loaded": playground.base_is_loaded,
    }


def _how(library: Library, source: str) -> str:
    run = library.runs().get(source)
    name = "RUN" if run is None or library.folder is None else str(library.folder / source)
    return f"The playground needs a model in memory. Run `agl serve {name}` and open the page that it prints."


async def _agent(library: Library, names: list[str]) -> dict[str, JSON] | None:
    """The latest call whose messages are recorded: what an agent asks, and its tools."""
    for name in names:
        try:
            source = await library.source(name)
            call = await _latest_call(source)
        except LightningError:  # a run that has recorded nothing yet
            continue
        if call is not None:
            return {"source": name, **call}
    return None


async def _latest_call(source: Source) -> dict[str, JSON] | None:
    states, _ = await source.store.list(limit=LATEST, order="newest")
    for state in states:
        _, attempts = await source.store.read(state.rollout.id)
        call = next((call for records in reversed(attempts) for call in _calls(records)), None)
        if call is not None:
            return {"id": state.rollout.id, "call": call}
    return None


def _calls(records: AttemptRecords) -> list[str]:
    """The ids of the calls that start a conversation."""
    return [call.id for call in records.calls if call.messages is not None and call.after is None]


class Ask:
    """`POST /view/api/ask/{side}`: a chat completion, answered by the gateway of the playground."""

    def __init__(self, access: Access, playground: Playground | None) -> None:
        self._access, self._playground = access, playground

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["side"]
        side: Side | None = next((side for side in SIDES if side == name), None)
        if not self._access.admits(Request(scope)):
            await failure(401, "You are not signed in. Open the link that `agl serve` printed.")(scope, receive, send)
        elif self._playground is None or side is None:
            await failure(404, "This page has no model to ask. Use the page of `agl serve RUN`.")(scope, receive, send)
        else:
            await self._playground.ask(side, scope, receive, _guarded(send))


def _guarded(send: Send) -> Send:
    """The answer with the headers of the page."""
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def guarded_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}
        await send(message)

    return guarded_send
