"""The attempt of a request, with its conversations. The store is enough to rebuild both, so any gateway serves any turn."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import unquote

from agentlightning.capture.recorder import AGENT_HEADER, CALL_HEADER, KEY_HEADER
from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.errors import NotFound
from agentlightning.gateway.api.body import read_fields
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.conversation import Conversations
from agentlightning.gateway.kept_messages import KeptMessages
from agentlightning.stores.messages import Message
from agentlightning.types import JSON, Attempt, Call, Completion, Rollout, Task, new_id

UNKNOWN = (
    "This call belongs to no attempt. Choose one of three ways to name its attempt. Use the attempt's key (llm.api_key) as the API key. "
    f"Or send that key in the header {KEY_HEADER}, as the adapters do. Or set OPENAI_BASE_URL and OPENAI_API_KEY to llm.base_url and "
    "llm.api_key, in a process that runs one rollout."
)
CHOSEN_IDS = 100_000
"""Ids chosen by clients that a gateway remembers."""
PRODUCTION_LEASE = 3600.0
"""Seconds for one production call, at most."""


@dataclass(slots=True)
class Seen:
    """A request of an attempt, and how it ended."""

    id: str
    request_hash: str
    body: str | None
    """Hash of its body. None: another gateway answered it, and the store has no bodies."""
    delivered: bool = True
    """False: its answer did not reach the agent."""
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request of an attempt as it arrived."""

    state: AttemptState
    seen: Seen
    index: int
    """`Call.index`."""
    body: bytes
    is_retry: bool
    """Whether the client says so."""
    started: float
    """Seconds since the epoch."""
    unread: Refused | None = None
    """The reason why its body was not read."""
    agent: str | None = None
    """The agent that calls, if a header tells it."""


@dataclass(frozen=True, slots=True)
class Thread:
    """A conversation that a later request may name instead of repeating it."""

    messages: list[Message]
    """Up to and with the latest reply, without the instructions that each request brings."""
    tools: list[JSON]


@dataclass(slots=True)
class AttemptState:
    """One attempt, its calls and its conversations."""

    rollout: Rollout
    attempt: Attempt
    conversations: Conversations = field(default_factory=Conversations)
    calls: dict[str, Seen] = field(default_factory=dict[str, Seen])
    messages: KeptMessages = field(default_factory=KeptMessages)
    threads: OrderedDict[str, Thread] = field(default_factory=OrderedDict[str, "Thread"])
    """By id of the call with the latest reply. Production calls share one."""
    owners: OrderedDict[str, str] = field(default_factory=OrderedDict[str, str])
    """The attempt of each id that a client chose. All attempts of a gateway share it, because the store takes an id once."""
    next_index: int = 0
    running: dict[asyncio.Task[Any], asyncio.Task[None]] = field(default_factory=dict["asyncio.Task[Any]", "asyncio.Task[None]"])
    """The tasks of calls that have not ended. Each with the task that ends when its client goes away; to cancel that one ends the call."""

    @classmethod
    def rebuild(cls, rollout: Rollout, records: AttemptRecords, owners: OrderedDict[str, str]) -> AttemptState:
        """Rebuild the state from the records of the attempt."""
        state = cls(rollout, records.attempt, owners=owners)
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
        """Add a recorded call. `before`: the number of messages in its request; None after a restart."""
        completions = list(completions)
        self.conversations.add(call, completions, before)
        self.messages.add(call, completions)
        if call.thread_start is not None and completions:
            self.threads[call.id] = Thread(self.messages.conversation(call.id)[call.thread_start :], self.messages.tools(call))

    def open(self, headers: Mapping[str, str], body: bytes | Refused, started: float) -> Incoming:
        """Count a request. It gets the id that its header asks for, unless a call of some attempt has that id. A `Refused`: its body was
        not read."""
        asked, retries = headers.get(CALL_HEADER, ""), headers.get("x-stainless-retry-count", "0")
        unread, body = (body, b"") if isinstance(body, Refused) else (None, body)
        seen = Seen(asked if self._may_use(asked) else new_id(), "", hashlib.sha256(body).hexdigest())
        self.calls[seen.id] = seen
        index, self.next_index = self.next_index, self.next_index + 1
        return Incoming(self, seen, index, body, retries.strip("0").isdecimal(), started, unread, agent_of(headers))

    def _may_use(self, id: str) -> bool:
        """Whether a client may choose this id for a call of this attempt."""
        if not 0 < len(id) <= 200 or not id.isprintable() or id in self.calls:
            return False
        while len(self.owners) > CHOSEN_IDS:
            self.owners.popitem(last=False)
        return self.owners.setdefault(id, self.attempt.id) == self.attempt.id

    def retried(self, seen: Seen) -> Seen | None:
        """The latest request with the same body that got no answer and has no retry yet."""
        for other in reversed(self.calls.values()):
            same = other.body == seen.body if other.body is not None else other.request_hash == seen.request_hash
            if other is not seen and same and not other.delivered and not other.superseded:
                return other
        return None


class Callers:
    """Finds the attempt of a request, and keeps the states of running attempts."""

    LIMIT = 512
    """Most attempts in memory. The longest idle ones leave first, and come back from the store when they call again. As many production
    calls are kept for requests that continue them."""

    def __init__(self, store: LightningStore, *, policy: str, token: str | None = None) -> None:
        self._store, self._policy, self._token = store, policy, token
        self._states: OrderedDict[str, AttemptState] = OrderedDict()
        self._loading: dict[str, asyncio.Task[AttemptState]] = {}
        self._threads: OrderedDict[str, Thread] = OrderedDict()  # of production calls
        self._owners: OrderedDict[str, str] = OrderedDict()

    async def begin(self, body: bytes) -> AttemptState:
        """Open a rollout for a production call."""
        rollout = Rollout(task=Task(new_id(), _question(body)), mode="production", policy=self._policy, max_attempts=1)
        while len(self._threads) > self.LIMIT:
            self._threads.popitem(last=False)
        attempt = await self._store.begin(rollout, "gateway", lease=PRODUCTION_LEASE)
        return AttemptState(rollout, attempt, threads=self._threads, owners=self._owners)

    async def attempt(self, headers: Mapping[str, str]) -> AttemptState | None:
        """The attempt of a request, or None for a production call with the server's token. Raises `Refused` (401) for any other key."""
        owner = await find_attempt(self._store, headers)
        if owner is not None:
            return await self._state(*owner)
        key = next(iter(keys_of(headers)), "")
        if self._token is not None and hmac.compare_digest(key.encode(), self._token.encode()):
            return None
        hint = "" if self._token is None else "The API key is wrong. Use the api_key that `agl serve` printed (AGL_TOKEN sets it). "
        raise Refused(hint + UNKNOWN, status=401, code="invalid_api_key")

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
            state = AttemptState.rebuild(rollout, await self._store.records(attempt.id), self._owners)
            self._states[attempt.id] = state
            idle = (id for id, old in self._states.items() if not old.running and id != attempt.id)
            for id in list(islice(idle, max(0, len(self._states) - self.LIMIT))):
                del self._states[id]
            return state
        finally:
            del self._loading[attempt.id]


async def find_attempt(store: LightningStore, headers: Mapping[str, str]) -> tuple[Rollout, Attempt] | None:
    """The rollout and attempt whose key comes with a request, or None."""
    for key in keys_of(headers):
        try:
            return await store.attempt(key=key)
        except NotFound:
            continue
    return None


def agent_of(headers: Mapping[str, str]) -> str | None:
    """The name of the agent that calls, or None."""
    return unquote(headers.get(AGENT_HEADER, "")) or None


def keys_of(headers: Mapping[str, str]) -> list[str]:
    """The keys of a request: as OpenAI's clients send it, as Anthropic's do, as our adapters do."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = (bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""), headers.get(KEY_HEADER.lower(), ""))
    return [key for key in keys if key]


def check_open(attempt: Attempt) -> None:
    """Raises `Refused` (401) when the attempt is closed."""
    if attempt.status != "running":
        raise Refused(
            f"Attempt {attempt.id} is closed ({attempt.status}), so its key no longer works. Check whether a thread or task of the agent "
            "still runs after the end of its rollout.",
            status=401,
            code="invalid_api_key",
        )


def _question(body: bytes) -> object:
    """The question of a request, in any form."""
    try:
        fields = read_fields(body)
    except Refused:  # the form refuses it later
        return None
    return {name: fields[name] for name in ("instructions", "system", "messages", "input", "prompt") if name in fields} or None
