"""Whose call it is, and what is known of that attempt. All of it can be rebuilt from the store, so any gateway serves any turn."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agentlightning.capture.recorder import KEY_HEADER
from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.errors import NotFound
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.conversation import Conversations
from agentlightning.types import Attempt, Call, Completion, Rollout, Task, new_id

UNKNOWN = (
    "this call belongs to no attempt. Say whose it is in one of three ways: use the attempt's key (llm.api_key) as the API key; or send "
    f"it in the header {KEY_HEADER}, as the adapters do from the current rollout; or, in a process that runs one rollout only, set "
    "OPENAI_BASE_URL and OPENAI_API_KEY to its llm.base_url and llm.api_key"
)
PRODUCTION_LEASE = 3600.0
"""Seconds that one production call may take."""


@dataclass(slots=True)
class Seen:
    """A request of an attempt."""

    id: str
    request_hash: str
    body: str | None
    """Hash of its body; None: known from the store only."""
    delivered: bool = True
    """False: its answer did not reach the agent."""
    superseded: bool = False


@dataclass(slots=True)
class AttemptState:
    """What the gateway knows of one attempt."""

    rollout: Rollout
    attempt: Attempt
    conversations: Conversations = field(default_factory=Conversations)
    calls: dict[str, Seen] = field(default_factory=dict[str, Seen])
    kept: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    """`Call.input` and the message of the reply, by id of the call, where a later request may refer to it."""
    next_index: int = 0
    active: int = 0
    """Calls under way."""

    @classmethod
    def rebuild(cls, rollout: Rollout, records: AttemptRecords) -> AttemptState:
        """From everything that the attempt wrote."""
        state = cls(rollout, records.attempt)
        completions: dict[str, list[Completion]] = {}
        for completion in records.completions:
            completions.setdefault(completion.call_id, []).append(completion)
        for call in records.calls:
            state.add(call, completions.get(call.id, ()), None)
            state.calls[call.id] = Seen(call.id, call.request_hash, None, call.status not in ("cancelled", "error"))
            state.next_index = max(state.next_index, call.index + 1)
            if call.supersedes in state.calls:
                state.calls[call.supersedes].superseded = True
        return state

    def add(self, call: Call, completions: Iterable[Completion], before: int | None) -> None:
        """Take in what was recorded; `before`: the messages of the request, where that is known."""
        completions = list(completions)
        self.conversations.add(call, completions, before)
        if call.input is not None and completions:
            self.kept[call.id] = call.input, completions[0].message

    def open(self, wanted: str | None, body: bytes) -> tuple[Seen, int]:
        """Take in a request: its id (the wanted one, unless the attempt has used it) and its index."""
        usable = wanted is not None and 0 < len(wanted) <= 200 and wanted.isprintable() and wanted not in self.calls
        seen = Seen(wanted if usable and wanted else new_id(), "", hashlib.sha256(body).hexdigest())
        self.calls[seen.id] = seen
        index, self.next_index = self.next_index, self.next_index + 1
        return seen, index

    def retried(self, seen: Seen) -> Seen | None:
        """The latest request with the same body whose answer was not delivered, and that was not retried yet."""
        for other in reversed(self.calls.values()):
            same = other.body == seen.body if other.body is not None else other.request_hash == seen.request_hash
            if other is not seen and same and not other.delivered and not other.superseded:
                return other
        return None

    def history(self, call: str) -> list[dict[str, Any]] | None:
        """The messages up to and with the reply of a call, without instructions, oldest first; None: they were not kept."""
        parts: list[list[dict[str, Any]]] = []
        at: str | None = call
        while at is not None:
            known = self.kept.get(at)
            if known is None:
                return None
            input, message = known
            parts += [[message], input["messages"]]
            at = input["after"]
        return [message for part in reversed(parts) for message in part]


class Callers:
    """Finds the attempt of a request, and keeps what is known of the attempts that are running."""

    LIMIT = 512
    """Attempts kept at most; the longest unused are forgotten, and rebuilt when they call again."""

    def __init__(self, store: LightningStore, *, policy: str, token: str | None = None) -> None:
        self._store, self._policy, self._token = store, policy, token
        self._states: OrderedDict[str, AttemptState] = OrderedDict()
        self._loading: dict[str, asyncio.Task[AttemptState]] = {}

    async def find(self, headers: Mapping[str, str], body: bytes) -> tuple[AttemptState, bool]:
        """The attempt, and whether the gateway made it for this request (production). Raises `Refused` (401) when there is none."""
        state = await self.known(headers)
        if state is not None:
            return state, False
        rollout = Rollout(task=Task(new_id(), _question(body)), mode="production", policy=self._policy, max_attempts=1)
        return AttemptState(rollout, await self._store.begin(rollout, "gateway", lease=PRODUCTION_LEASE)), True

    async def known(self, headers: Mapping[str, str]) -> AttemptState | None:
        """The attempt of a request; None: it comes with the server's token, and has none. Raises `Refused` (401) for any other."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        own = bearer.strip() if scheme.lower() == "bearer" and bearer.strip() else headers.get("x-api-key", "")  # OpenAI's, Anthropic's
        for key in (own, headers.get(KEY_HEADER.lower(), "")):
            if key:
                try:
                    rollout, attempt = await self._store.attempt(key=key)
                except NotFound:
                    continue
                return await self._state(rollout, attempt)
        if self._token is not None and hmac.compare_digest(own.encode(), self._token.encode()):
            return None
        served = "" if self._token is None else "wrong API key: use the api_key that `agl serve` printed (AGL_TOKEN sets it). Otherwise, "
        raise Refused(served + UNKNOWN, status=401, code="invalid_api_key")

    async def _state(self, rollout: Rollout, attempt: Attempt) -> AttemptState:
        state = self._states.get(attempt.id)
        if state is None:
            load = self._loading.get(attempt.id)
            if load is None:
                load = self._loading[attempt.id] = asyncio.create_task(self._load(rollout, attempt))
            state = await asyncio.shield(load)
        else:
            self._states.move_to_end(attempt.id)
        state.attempt = attempt
        if attempt.status != "running":
            self._states.pop(attempt.id, None)
        return state

    async def _load(self, rollout: Rollout, attempt: Attempt) -> AttemptState:
        try:
            state = AttemptState.rebuild(rollout, await self._store.records(attempt.id))
            self._states[attempt.id] = state
            idle = [id for id, old in self._states.items() if not old.active and id != attempt.id]
            for id in idle[: max(0, len(self._states) - self.LIMIT)]:
                del self._states[id]
            return state
        finally:
            del self._loading[attempt.id]


def check_open(attempt: Attempt) -> None:
    """Raises `Refused` (401) when the attempt is closed."""
    if attempt.status != "running":
        raise Refused(
            f"attempt {attempt.id} is closed ({attempt.status}), and its key with it; a model call after the end of its rollout is not "
            "answered. Does something of the agent go on running?",
            status=401,
            code="invalid_api_key",
        )


def remember(state: AttemptState, seen: Seen, call: Call, completions: list[Completion], before: int) -> None:
    """Take in a call that was recorded."""
    seen.request_hash = call.request_hash
    seen.delivered = seen.delivered and call.status in ("completed", "refused")
    state.add(call, completions, before)


def _question(body: bytes) -> object:
    """What is asked, in whichever form."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.MsgspecError:  # whatever it is, it is refused later with a message
        return None
    return {name: fields[name] for name in ("instructions", "system", "messages", "input", "prompt") if name in fields} or None
