"""The values of Agent Lightning, from a task to a trajectory. All are frozen; a change creates a new value.

Token ids and versions are int32 arrays, log-probabilities are float32 arrays, all read-only. Times are seconds since the epoch (float).
The creator of a value gives it an id, a UUIDv7. Ids never define an order.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, TypeAlias, cast

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import ArrayLike, NDArray

from agentlightning.errors import ConfigError

JSON: TypeAlias = Any
"""Any value that JSON can hold."""
IntArray: TypeAlias = NDArray[np.int32]
FloatArray: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

Mode = Literal["train", "eval", "production"]
PolicyKind = Literal["full", "lora"]
SpanKind = Literal["llm", "tool", "agent", "note", "link"]
"""`link`: stands for a span that is not recorded. Its children belong to its parent, and readers of an attempt never see it."""
AttemptStatus = Literal["running", "succeeded", "failed", "timed_out", "cancelled", "lost"]
"""`lost`: the lease expired. `failed`: the agent raised. Only `succeeded` is trained on, unless a policy says otherwise."""
RolloutStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
CallStatus = Literal["completed", "cancelled", "refused", "error"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


def new_id() -> str:
    """A UUIDv7 (RFC 9562) as 32 hexadecimal digits."""
    value = (int(time.time() * 1000) & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value).hex


def ints(values: ArrayLike) -> IntArray:
    """A read-only int32 array; the same object if it already is one."""
    return _frozen(np.asarray(values, dtype=np.int32))


def floats(values: ArrayLike) -> FloatArray:
    """A read-only float32 array; the same object if it already is one."""
    return _frozen(np.asarray(values, dtype=np.float32))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


class Value:
    """Equality by content, for dataclasses and structs. Arrays and NaN compare by content too."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, name), getattr(other, name)) for name in _field_names(type(self)))

    def __ne__(self, other: object) -> bool:
        return not self == other  # a struct's own compares identity

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash


class WireValue(Value, msgspec.Struct, frozen=True, eq=False, tag=True):
    """A value that stores write and send, tagged with the name of its class. Change one with `msgspec.structs.replace`."""


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    return tuple(field.name for field in fields(cast(Any, kind)))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        one: NDArray[Any] = np.asarray(cast(Any, a))
        other: NDArray[Any] = np.asarray(cast(Any, b))
        return bool(one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(a == b)


# --- tasks, rollouts, attempts ------------------------------------------------------------------------------------------------------------


class Task(WireValue, frozen=True):
    """One input for an agent."""

    id: str
    input: JSON
    """The argument of the agent."""


def is_greedy(temperature: float) -> bool:
    """Return True for temperatures that pick the likeliest token: 0, and smaller than numbers of 32 bits can divide logits by. vLLM draws
    the same line."""
    return not temperature >= 1e-5  # also for NaN


class Sampling(WireValue, frozen=True, kw_only=True):
    """The sampling settings of a reply.

    `logprobs` are always log-softmax(logits / temperature) over the full vocabulary. A temperature below 1e-5 is greedy, with the logprobs
    of temperature 1.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: the full vocabulary."""
    max_tokens: int | None = None
    """Maximum sampled tokens; None: up to the model's context."""
    stop: tuple[str, ...] = ()
    """Strings that end the reply. They are sampled, and hidden from the agent."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the reply. The final one is part of the response."""
    seed: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether the sampling distribution is narrower than that of the recorded logprobs."""
        return not is_greedy(self.temperature) and (self.top_p < 1 or self.top_k > 0)


class Rollout(WireValue, frozen=True, kw_only=True):
    """One run of an agent on one task."""

    id: str = msgspec.field(default_factory=new_id)
    task: Task
    mode: Mode
    group: str | None = None
    """Shared by the rollouts of one task in one step."""
    index: int = 0
    """Position in the group, from 0."""
    step: int | None = None
    """Its training step, from 0."""
    policy: str = "main"
    seed: int = 0
    """The run's seed. Every call derives its own."""
    sampling: Sampling | None = None
    """Overrides the agent's settings; None (production): keep them."""
    prompts: dict[str, str] = {}
    """Texts that replace the agent's own prompts, by name (`LLM.prompt`)."""
    max_attempts: int = 3
    """Maximum attempts. Lost ones count, cancelled ones do not: a stopped runner gives its rollouts back."""
    created: float = msgspec.field(default_factory=time.time)


class Attempt(WireValue, frozen=True, kw_only=True):
    """One try at a rollout. The store creates it when a runner claims."""

    id: str
    rollout_id: str
    number: int
    """From 1."""
    key: str
    """The bearer token of this attempt's model calls. It expires when the attempt closes."""
    worker: str
    status: AttemptStatus
    started: float
    finished: float | None = None
    error: str | None = None
    """Why it did not succeed, in words."""


# --- records ------------------------------------------------------------------------------------------------------------------------------


class Call(WireValue, frozen=True, kw_only=True):
    """One request to the gateway, successful or not. Every request has exactly one call."""

    id: str
    attempt_id: str
    index: int
    """Order of arrival in the attempt, from 0."""
    status: CallStatus
    """`completed`: answered in full. `cancelled`: the client disconnected. `refused`: a 4xx. `error`: the gateway's or the engine's."""
    detail: str | None = None
    """The reason of a status other than `completed`."""
    choices: int = 0
    """Completions recorded under this call."""
    supersedes: str | None = None
    """The call that this one retries, because its answer was not delivered."""
    request_hash: str = ""
    """Hash of the canonical request, to join spans that lost the id."""
    context: str | None = None
    """Origin of the prompt. `bridged` continues an earlier completion, and an `upstream` rendered its own. The other names say why
    the gateway rendered it afresh: `first`; the agent's `edited`, `trimmed`, `tools changed`, `repeated` (ends with the reply); the
    template's `rewritten: thinking`, `rewritten: tools`, `rewritten: template`; `renderer changed`; `policy changed` (another policy gave
    the reply that it continues)."""
    tools: int = 0
    """Tools that the request offered."""
    after: str | None = None
    """An earlier call of the attempt. `messages` quotes its conversation: its messages, then its replies by choice."""
    messages: JSON = None
    """The messages of the request, in OpenAI's form. Each item is a message, or `[start, end]` of the conversation of `after` (end None: to
    its end). `messages_of` in `agentlightning.stores.messages` puts the whole list together. None: not recorded."""
    tools_from: str | None = None
    """An earlier call of the attempt with the same `tool_schemas`."""
    tool_schemas: JSON = None
    """The tools of the request, as the sender wrote them. None: it has none, or those of `tools_from`."""
    thread_start: int | None = None
    """A later request may name this call instead of its conversation from this message on. None: none may."""
    started: float = 0.0
    ended: float = 0.0


class Completion(WireValue, frozen=True, kw_only=True):
    """One sampled reply, exactly as the engine returned it."""

    id: str = msgspec.field(default_factory=new_id)
    call_id: str
    attempt_id: str
    choice: int = 0
    policy: str = "main"
    prompt_ids: IntArray
    """(prompt,) the engine's input."""
    response_ids: IntArray
    """(response,) all sampled tokens, with the end marker and a hidden stop string."""
    logprobs: FloatArray | None
    """(response,) log-softmax(logits / temperature), full vocabulary; None: not measured."""
    versions: IntArray
    """(response,) version of the policy that sampled the token; -1: another model."""
    sampling: Sampling
    finish_reason: FinishReason
    renderer: str = ""
    tokenizer: str = ""
    """Hash of the tokenizer that the ids belong to."""
    continues: str | None = None
    """Id of the completion whose tokens start this prompt."""
    conversation: str = ""
    """Hash of the canonical conversation, this reply included. A later request finds it by this hash."""
    message: JSON = None
    """The reply as the agent saw it (role, content, tool_calls)."""
    demonstrated: bool = False
    """Whether a demonstration supplied the response. It has no logprobs, and its versions are -1."""
    problem: str | None = None
    """Why a part of the reply that looks like a tool call stays text, or what is wrong with a call that `tool_choice` demands."""
    missing: str | None = None
    """Why an upstream server's token ids or logprobs are missing. Without token ids, prompt and response are empty."""
    created: float = msgspec.field(default_factory=time.time)

    def __post_init__(self) -> None:
        force_setattr(self, "prompt_ids", ints(self.prompt_ids))
        force_setattr(self, "response_ids", ints(self.response_ids))
        force_setattr(self, "versions", ints(self.versions))
        if self.logprobs is not None:
            force_setattr(self, "logprobs", floats(self.logprobs))
        tokens = len(self.response_ids)
        for name, values in (("logprobs", self.logprobs), ("versions", self.versions)):
            if values is not None and len(values) != tokens:
                raise ValueError(f"Completion {self.id} has {tokens} tokens and {len(values)} {name}. Give one each.")


class Span(WireValue, frozen=True, kw_only=True):
    """An event in an attempt: a model call, a tool, an agent, a note."""

    id: str = msgspec.field(default_factory=new_id)
    attempt_id: str
    kind: SpanKind
    name: str
    """Name of the agent, the tool or the model; the text of a note."""
    parent_id: str | None = None
    call_id: str | None = None
    """The model call of an `llm` span."""
    agent: str | None = None
    """The framework's name of the acting agent or node."""
    started: float = msgspec.field(default_factory=time.time)
    ended: float | None = None
    attributes: dict[str, JSON] = {}


class Reward(WireValue, frozen=True, kw_only=True):
    """A number for an attempt, or for one span or model call of it. Appended, never edited."""

    id: str = msgspec.field(default_factory=new_id)
    attempt_id: str
    value: float
    name: str = "reward"
    """`return` is the agent's return value."""
    span_id: str | None = None
    call_id: str | None = None
    source: str = "agent"
    """`agent`, `runner`, or the name of a judge or a person."""
    created: float = msgspec.field(default_factory=time.time)


Record: TypeAlias = Call | Completion | Span | Reward
"""Everything that an attempt records."""


# --- the learner --------------------------------------------------------------------------------------------------------------------------


class Policy(WireValue, frozen=True, kw_only=True):
    """One version of the weights."""

    name: str = "main"
    version: int
    base: str
    """The model that training started from."""
    kind: PolicyKind = "full"
    uri: str
    """Location of the weights: `file:/folder`, `memory:<key>`."""


class Transition(WireValue, frozen=True, kw_only=True):
    """One model call as the trainer sees it."""

    completion_id: str
    call_id: str
    prompt_ids: IntArray
    response_ids: IntArray
    logprobs: FloatArray | None
    versions: IntArray
    temperature: float
    agent: str | None
    """The caller; None: no adapter recorded it."""
    index: int
    """Order in the attempt, from 0, by arrival of the call and then by choice."""
    turn: int
    """Number of earlier calls of this agent in this attempt."""
    rewards: tuple[Reward, ...] = ()
    """Rewards of its own call or span."""
    continues: int | None = None
    """Index of the transition whose tokens start this prompt."""
    demonstrated: bool = False
    """Whether the response is a demonstration, which belongs in no probability ratio."""
    truncated: bool = False
    """Whether a token limit or the context ended the response."""
    policy: str = "main"
    """Name of the policy that sampled it."""
    trained: bool = True
    """False: it is context and evidence only, for the `reason`."""
    reason: str | None = None


class Trajectory(WireValue, frozen=True, kw_only=True):
    """The transitions of one winning attempt, in order."""

    task: Task
    rollout_id: str
    attempt_id: str
    group: str
    index: int
    """Position in the group."""
    mode: Mode
    status: AttemptStatus
    error: str | None = None
    """Why the attempt did not succeed."""
    reward: float | None
    """The reward of the rollout; None: never scored, which differs from zero, or excluded."""
    excluded: str | None = None
    """The reason why the rollout has no part in training; None: it has."""
    rewards: tuple[Reward, ...] = ()
    """Rewards of the entire attempt."""
    transitions: tuple[Transition, ...] = ()
    calls: dict[str, int] = {}
    """Number of requests by status; the sum is the number of requests."""
    other_calls: int = 0
    """Requests of the rollout's other attempts, which are never trained."""
    contexts: dict[str, int] = {}
    """Number of completed requests by the origin of their prompts, as in `Call.context`."""
    broken_calls: int = 0
    """Replies with a tool call that cannot be read (`Completion.problem`)."""
    tool_offers: int = 0
    """Completed requests that offered tools."""
    tool_uses: int = 0
    """Completed requests with tools that the model answered with a tool call."""
    diagnostics: tuple[str, ...] = ()
    """Records that were excluded or could not be joined, by name."""


@dataclass(frozen=True, slots=True)
class LLM:
    """How an agent reaches its model, and the prompts in force."""

    model: str
    base_url: str
    api_key: str
    policies: tuple[str, ...] = ()
    """Names of the run's policies. Ask for one of them as `model` to choose it; empty: the run has one policy without a name."""
    prompts: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, hash=False)
    """Texts that replace the agent's own prompts, by name."""
    on_prompt: Callable[[str, str], None] | None = field(default=None, repr=False, compare=False)
    """Called with the name and the text of each prompt that `prompt` returns. The rollout records them."""

    def prompt(self, name: str, *, default: str | None = None) -> str:
        """Return the text of a prompt that may change: the run's text for this rollout, else `default`. The rollout records it.

        Raises `ConfigError` if there is neither.
        """
        text = self.prompts.get(name, default)
        if not isinstance(text, str):
            problem = "neither the run nor the agent sets it" if text is None else f"its default is {text!r:.80}"
            raise ConfigError(f"The prompt {name!r} has no text: {problem}. Pass default='...', or set it under [prompts] in the config.")
        if self.on_prompt is not None:
            self.on_prompt(name, text)
        return text


def prompt_version(text: str) -> str:
    """Return the version of a prompt's text: 8 hexadecimal digits of its hash, so that equal texts have one version everywhere."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
