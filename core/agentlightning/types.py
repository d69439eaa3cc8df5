"""The values of Agent Lightning, from a task to a policy. All are frozen; a change makes a new value.

Token ids and versions are int32 arrays, log-probabilities float32 arrays, all read-only. Times are seconds since the
epoch (float). An id is a UUIDv7 made by whoever makes the value; it is never used for order.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

JSON: TypeAlias = Any
"""Any value that JSON can hold."""
IntArray: TypeAlias = NDArray[np.int32]
FloatArray: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

Mode = Literal["train", "eval", "production"]
SpanKind = Literal["llm", "tool", "agent", "note"]
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
    """A read-only int32 array; the array itself where it is one already."""
    return _frozen(np.asarray(values, dtype=np.int32))


def floats(values: ArrayLike) -> FloatArray:
    """A read-only float32 array; the array itself where it is one already."""
    return _frozen(np.asarray(values, dtype=np.float32))


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


class Value:
    """Equality by content, arrays and NaN included."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        one: NDArray[Any] = np.asarray(cast(Any, a))
        other: NDArray[Any] = np.asarray(cast(Any, b))
        return bool(one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b)
    return bool(a == b)


@dataclass(frozen=True, slots=True, eq=False)
class Task(Value):
    """One input for an agent."""

    id: str
    input: JSON
    """What the agent is given."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sampling(Value):
    """How a reply is sampled. `logprobs` are always log-softmax(logits / temperature) over the whole vocabulary;
    at temperature 0 the reply is greedy and logprobs are those of temperature 1."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: the whole vocabulary."""
    max_tokens: int | None = None
    """Tokens sampled at most; None: up to the model's context."""
    stop: tuple[str, ...] = ()
    """Strings that end the reply; they are sampled and hidden."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the reply; the one that ended it is part of the response."""
    seed: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether recorded logprobs are not those of the distribution that was sampled from."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rollout(Value):
    """One run of an agent on one task."""

    id: str = field(default_factory=new_id)
    task: Task
    mode: Mode
    group: str | None = None
    """Shared by the rollouts of one task in one step."""
    index: int = 0
    """Position in the group, from 0."""
    step: int | None = None
    """Training step that asked for it, from 0."""
    policy: str = "main"
    seed: int = 0
    """The run's seed; each call derives its own from it."""
    sampling: Sampling | None = None
    """Overrides what the agent asks; None (production): the agent's own settings hold."""
    max_attempts: int = 3
    """Attempts made at most, lost ones included."""
    created: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Attempt(Value):
    """One try at a rollout. Made by the store when a runner claims."""

    id: str
    rollout_id: str
    number: int
    """From 1."""
    key: str
    """The bearer token that makes a model call this attempt's. Worthless once the attempt is closed."""
    worker: str
    status: AttemptStatus
    started: float
    finished: float | None = None
    error: str | None = None
    """Why it did not succeed, for a person."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Call(Value):
    """One request that reached the gateway, whatever became of it. The sum of calls is the sum of requests."""

    id: str
    attempt_id: str
    index: int
    """Order of arrival in the attempt, from 0."""
    status: CallStatus
    """`completed`: answered in full. `cancelled`: the client went away. `refused`: a 4xx. `error`: ours or the engine's."""
    detail: str | None = None
    """Why, where the status is not `completed`."""
    choices: int = 0
    """Completions recorded under this call."""
    supersedes: str | None = None
    """The call of which this one is a retry (its answer was not delivered)."""
    request_hash: str = ""
    """Of the canonical request, for joining spans that lost the id."""
    context: str | None = None
    """How the prompt was made: `bridged` from an earlier completion, or rendered afresh because it was `first`, or the history
    was `edited` or `trimmed`, `tools changed`, or `no bridge` exists for the renderer; or it was made by an `upstream`."""
    input: JSON = None
    """Where a later request may refer to this one instead of repeating it: `messages` (without instructions), which follow the reply
    of the call `after` (None: they are all)."""
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Completion(Value):
    """One sampled reply, exactly as the engine made it."""

    id: str = field(default_factory=new_id)
    call_id: str
    attempt_id: str
    choice: int = 0
    policy: str = "main"
    prompt_ids: IntArray
    """(prompt,) what the engine was given."""
    response_ids: IntArray
    """(response,) everything that was sampled, end marker and hidden stop string included."""
    logprobs: FloatArray | None
    """(response,) log-softmax(logits / temperature), full vocabulary; None: not measured."""
    versions: IntArray
    """(response,) version of the policy that sampled each token; -1: no policy of ours did."""
    sampling: Sampling
    finish_reason: FinishReason
    renderer: str = ""
    tokenizer: str = ""
    """Hash of the tokenizer, so that ids are never read with another one."""
    continues: str | None = None
    """Id of the completion whose tokens this prompt starts with."""
    conversation: str = ""
    """Hash of the canonical conversation up to and with this reply; how a later request finds it."""
    message: JSON = None
    """The reply as the agent saw it (role, content, tool_calls)."""
    demonstrated: bool = False
    """Whether the response was not sampled but given by a demonstration: then it has no logprobs, and its versions are -1."""
    missing: str | None = None
    """Why its token ids are not known (then there are none here, of prompt and response), or its logprobs: a server that is not ours
    made it, and did not tell."""
    created: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", ints(self.prompt_ids))
        object.__setattr__(self, "response_ids", ints(self.response_ids))
        object.__setattr__(self, "versions", ints(self.versions))
        if self.logprobs is not None:
            object.__setattr__(self, "logprobs", floats(self.logprobs))
            if len(self.logprobs) != len(self.response_ids):
                raise ValueError(f"completion {self.id}: {len(self.response_ids)} tokens have {len(self.logprobs)} logprobs")
        if len(self.versions) != len(self.response_ids):
            raise ValueError(f"completion {self.id}: {len(self.response_ids)} tokens have {len(self.versions)} versions")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Span(Value):
    """Something that happened in an attempt."""

    id: str = field(default_factory=new_id)
    attempt_id: str
    kind: SpanKind
    name: str
    """Of the agent, the tool, the model; of a note, its text."""
    parent_id: str | None = None
    call_id: str | None = None
    """The model call of an `llm` span."""
    agent: str | None = None
    """Who acted: the framework's name for the agent or node."""
    started: float = field(default_factory=time.time)
    ended: float | None = None
    attributes: dict[str, JSON] = field(default_factory=dict[str, JSON])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reward(Value):
    """A number for an attempt, or for one span or model call of it. Appended, never edited."""

    id: str = field(default_factory=new_id)
    attempt_id: str
    value: float
    name: str = "reward"
    """`return` is the number that the agent returned."""
    span_id: str | None = None
    call_id: str | None = None
    source: str = "agent"
    """Who says so: `agent`, `runner`, a judge's or a person's name."""
    created: float = field(default_factory=time.time)


Record: TypeAlias = Call | Completion | Span | Reward
"""What is recorded in an attempt."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Policy(Value):
    """One version of the weights."""

    name: str = "main"
    version: int
    base: str
    """The model it started from."""
    kind: Literal["full", "lora"] = "full"
    uri: str
    """Where the weights are: `file:/folder`, `memory:<key>`."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Transition(Value):
    """One completion as the learner sees it."""

    completion_id: str
    call_id: str
    prompt_ids: IntArray
    response_ids: IntArray
    logprobs: FloatArray | None
    versions: IntArray
    temperature: float
    agent: str | None
    """None: no adapter said who called."""
    index: int
    """Order in the attempt, from 0: by arrival of the call, then choice."""
    turn: int
    """How many calls this agent made before, in this attempt."""
    rewards: tuple[Reward, ...] = ()
    """Those of its own call or span."""
    continues: int | None = None
    """Index of the transition whose tokens this prompt starts with."""
    demonstrated: bool = False
    """Whether the response is a demonstration, which nobody sampled: it belongs in no ratio."""
    truncated: bool = False
    """Whether a limit of tokens, or the context, ended the response."""
    trained: bool = True
    """False: it is context and evidence only; `reason` says why."""
    reason: str | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trajectory(Value):
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
    """The reward of the rollout; None: never scored, which is not zero."""
    rewards: tuple[Reward, ...] = ()
    """Those of the attempt as a whole."""
    transitions: tuple[Transition, ...] = ()
    calls: dict[str, int] = field(default_factory=dict[str, int])
    """How many requests ended as what; the sum is the number of requests."""
    diagnostics: tuple[str, ...] = ()
    """What was left out or could not be joined, by name."""


@dataclass(frozen=True, slots=True)
class LLM:
    """What an agent needs to reach its model."""

    model: str
    base_url: str
    api_key: str
