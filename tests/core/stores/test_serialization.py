"""The wire: what was written is read back equal, and everything else is refused by name."""

from __future__ import annotations

import enum
import math
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import WireError
from agentlightning.stores import serialization
from agentlightning.stores.messages import messages_of, tools_of
from agentlightning.stores.serialization import _CONTENT, HEADER, MAGIC, SCHEMA, checksum, decode, encode
from agentlightning.types import (
    Attempt,
    Call,
    Completion,
    Policy,
    Record,
    Reward,
    Rollout,
    Sampling,
    Span,
    Task,
    Trajectory,
    Transition,
    WireValue,
)  # fmt: skip

OLDEST = min(serialization.UPGRADES)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
maybe = st.none() | text
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**18, 10**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
small = st.integers(0, 9)
number = st.floats(allow_nan=True)
tokens = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8)


@st.composite
def completions(draw: Any) -> Completion:
    response = draw(tokens)
    size = len(response)
    logprobs = draw(st.none() | st.lists(st.floats(width=32, allow_nan=True), min_size=size, max_size=size))
    return Completion(
        id=draw(text), call_id=draw(text), attempt_id=draw(text), choice=draw(small), prompt_ids=draw(tokens), response_ids=response,
        logprobs=logprobs, versions=np.arange(size), sampling=draw(samplings), finish_reason=draw(st.sampled_from(["stop", "length"])),
        continues=draw(maybe), message=draw(json), created=draw(number),
    )  # fmt: skip


samplings = st.builds(
    Sampling, temperature=number, top_p=number, top_k=small, max_tokens=st.none() | small, stop=st.lists(text, max_size=2).map(tuple),
    stop_ids=st.lists(small, max_size=2).map(tuple), seed=st.none() | st.integers(-(2**63), 2**64 - 1),
)  # fmt: skip
tasks = st.builds(Task, text, json)
rollouts = st.builds(
    Rollout, id=text, task=tasks, mode=st.sampled_from(["train", "eval", "production"]), group=maybe, index=small,
    step=st.none() | small, seed=st.integers(-(2**63), 2**64 - 1), sampling=st.none() | samplings, created=number,
)  # fmt: skip
attempts = st.builds(
    Attempt, id=text, rollout_id=text, number=small, key=text, worker=text, status=st.sampled_from(["running", "lost"]),
    started=number, finished=st.none() | number, error=maybe,
)  # fmt: skip
calls = st.builds(
    Call, id=text, attempt_id=text, index=small, status=st.sampled_from(["completed", "refused"]), detail=maybe,
    after=maybe, messages=json, tools_from=maybe, tool_schemas=json, thread_start=st.none() | small,
)  # fmt: skip
spans = st.builds(
    Span, id=text, attempt_id=text, kind=st.sampled_from(["llm", "tool"]), name=text, started=number,
    attributes=st.dictionaries(text, json, max_size=3),
)  # fmt: skip
rewards = st.builds(Reward, id=text, attempt_id=text, value=number, span_id=maybe)
policies = st.builds(Policy, version=small, base=text, kind=st.sampled_from(["full", "lora"]), uri=text)
records = st.one_of(calls, completions(), spans, rewards)
states = st.builds(
    RolloutState, rollout=rollouts, status=st.sampled_from(["queued", "failed"]), attempts=st.lists(attempts, max_size=2).map(tuple),
    seq=small,
)  # fmt: skip
written = st.builds(
    AttemptRecords, attempt=attempts, calls=st.lists(calls, max_size=2).map(tuple),
    completions=st.lists(completions(), max_size=2).map(tuple), spans=st.lists(spans, max_size=2).map(tuple),
    rewards=st.lists(rewards, max_size=2).map(tuple),
)  # fmt: skip
transitions = completions().map(
    lambda c: Transition(
        completion_id=c.id, call_id=c.call_id, prompt_ids=c.prompt_ids, response_ids=c.response_ids, logprobs=c.logprobs,
        versions=c.versions, temperature=1.0, agent=None, index=0, turn=0, rewards=(Reward(attempt_id="a", value=math.nan),),
    )
)  # fmt: skip
trajectories = st.builds(
    Trajectory, task=tasks, rollout_id=text, attempt_id=text, group=text, index=small, mode=st.just("train"),
    status=st.just("succeeded"), reward=st.none() | number, transitions=st.lists(transitions, max_size=2).map(tuple),
    calls=st.dictionaries(text, small, max_size=2), diagnostics=st.lists(text, max_size=2).map(tuple),
)  # fmt: skip
KINDS = [
    (tasks, Task), (samplings, Sampling), (rollouts, Rollout), (attempts, Attempt), (calls, Call), (completions(), Completion),
    (spans, Span), (rewards, Reward), (policies, Policy), (transitions, Transition), (trajectories, Trajectory),
    (states, RolloutState), (written, AttemptRecords), (records, Record), (st.lists(records, max_size=3), list[Record]),
    (st.tuples(rollouts, attempts), tuple[Rollout, Attempt]), (st.none() | policies, Policy | None), (text, str), (small, int),
    (st.lists(text).map(tuple), tuple[str, ...]), (st.tuples(st.lists(states, max_size=2), small), tuple[list[RolloutState], int]),
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, NaN within content included; what is inside `Value`s is compared through their fields."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, WireValue):
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    return type(a) is type(b) and a == b


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_every_value_comes_back_equal(data: Any) -> None:
    strategy, kind = data.draw(st.sampled_from(KINDS))
    value = data.draw(strategy)
    assert same(decode(encode(value), kind), value)


@given(policies)
def test_values_of_equal_content_are_equal_and_nothing_else_is(policy: Policy) -> None:
    copy, later = msgspec.structs.replace(policy), msgspec.structs.replace(policy, version=policy.version + 1)
    assert policy is not copy
    assert (policy == copy, policy != copy) == (True, False)
    assert (policy == later, policy != later) == (False, True)
    assert (policy == "policy", policy != "policy") == (False, True)


@given(completions(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_or_missing_byte_is_refused(completion: Completion, data: Any) -> None:
    message = encode(completion)
    at = data.draw(st.integers(0, len(message) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    if at not in (6, 7):  # reserved, free to be used by a later version of the same schema
        with pytest.raises(WireError):
            decode(message[:at] + bytes([message[at] ^ bit]) + message[at + 1 :], Completion)
    with pytest.raises(WireError):
        decode(message[:at], Completion)


def test_a_changed_schema_is_refused_and_not_upgraded() -> None:
    message = encode([1])
    with pytest.raises(WireError, match="damaged"):
        decode(message[:4] + (SCHEMA - 1).to_bytes(2, "little") + message[6:], list[int])


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        decode(HEADER.pack(MAGIC, SCHEMA, 0, checksum(body, SCHEMA)) + body, Completion)


def test_arrays_are_read_only_int32_and_float32_and_take_four_bytes_a_token() -> None:
    def of_size(size: int) -> Completion:
        return Completion(
            id="i", call_id="c", attempt_id="a", prompt_ids=np.arange(size), response_ids=[7, 8], logprobs=[math.nan, -1.5],
            versions=[0, 0], sampling=Sampling(), finish_reason="stop",
        )  # fmt: skip

    back = decode(encode(of_size(1000)), Completion)
    assert back.prompt_ids.dtype == np.int32
    assert back.logprobs is not None
    assert back.logprobs.dtype == np.float32
    assert math.isnan(back.logprobs[0])
    assert back.logprobs[1] == -1.5
    assert not back.prompt_ids.flags.writeable
    assert back.prompt_ids.flags.aligned
    assert len(encode(of_size(2000))) - len(encode(of_size(1000))) == 4000


@pytest.mark.parametrize(("schema", "advice"), [(SCHEMA + 1, "here"), (OLDEST - 1, "where the bytes were written")])
def test_another_schema_is_refused_by_name(schema: int, advice: str) -> None:
    data = encode(Task("a", 1))
    with pytest.raises(WireError, match=rf"schema {schema}, .* reads schema {SCHEMA}\. Upgrade agentlightning {advice}"):
        decode(data[:4] + struct.pack("<H", schema) + data[6:], Task)


def test_bytes_of_an_older_schema_are_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes of the future: `text` is called `input`, and then the ids get a prefix."""
    monkeypatch.setattr(serialization, "SCHEMA", SCHEMA + 2)
    old = {"type": "Task", "id": "a", "text": {"n": msgspec.msgpack.Ext(3, str(10**30).encode()), "tokens": [1]}}
    body = msgspec.msgpack.encode(old)
    data = HEADER.pack(MAGIC, SCHEMA, 0, checksum(body, SCHEMA)) + body
    with pytest.raises(WireError, match="Upgrade agentlightning where the bytes were written"):
        decode(data, Task)

    def rename(task: dict[str, Any]) -> dict[str, Any]:
        return {"type": task["type"], "id": task["id"], "input": task["text"]}

    def prefix(task: dict[str, Any]) -> dict[str, Any]:
        return {**task, "id": f"t-{task['id']}"}

    monkeypatch.setattr(serialization, "UPGRADES", {SCHEMA: rename, SCHEMA + 1: prefix})
    assert decode(data, Task) == Task("t-a", {"n": 10**30, "tokens": [1]})
    assert decode(encode(Task("t-a", 1)), Task) == Task("t-a", 1)


def test_the_messages_that_schema_2_kept_are_those_of_the_call() -> None:
    def of_schema_2(id: str, kept: Any) -> dict[str, Any]:
        content = msgspec.msgpack.decode(encode(Call(id=id, attempt_id="a", index=0, status="completed"))[HEADER.size :])
        new = {name for name in content if name in ("after", "messages", "tools_from", "tool_schemas", "thread_start")}
        return {**{name: value for name, value in content.items() if name not in new}, "input": kept}

    def read(content: Any, kind: Any) -> Any:
        body = msgspec.msgpack.encode(content)
        return decode(HEADER.pack(MAGIC, 2, 0, zlib.crc32(body)) + body, kind)

    hello, again, tool = {"role": "user", "content": "hello"}, {"role": "user", "content": "again"}, {"type": "function"}
    old = [
        of_schema_2("c1", {"after": None, "messages": [hello], "tools": [tool]}),
        of_schema_2("c2", {"after": "c1", "messages": [again]}),
        of_schema_2("c3", None),
    ]
    calls = read(old, list[Call])
    reply = Completion(
        call_id="c1", attempt_id="a", prompt_ids=[], response_ids=[], logprobs=None, versions=[], sampling=Sampling(), finish_reason="stop",
        message={"role": "assistant", "content": "hi"},
    )  # fmt: skip
    attempt = Attempt(id="a", rollout_id="r", number=1, key="k", worker="w", status="running", started=0)
    records = AttemptRecords(attempt=attempt, calls=tuple(calls), completions=(reply,))
    assert [messages_of(records, call.id) for call in calls] == [[hello], [hello, {"role": "assistant", "content": "hi"}, again], None]
    assert [tools_of(records, call.id) for call in calls] == [[tool], [tool], None]
    assert [call.thread_start for call in calls] == [0, 0, None]
    assert read({**msgspec.msgpack.decode(encode(records)[HEADER.size :]), "calls": old}, AttemptRecords) == records


def test_a_field_that_a_value_gained_reads_as_its_default() -> None:
    call = Call(id="c", attempt_id="a", index=0, status="completed", tools=3)
    content = msgspec.msgpack.decode(encode(call)[HEADER.size :])
    del content["tools"]
    body = msgspec.msgpack.encode({**content, "of_a_later_version": 1})
    assert decode(HEADER.pack(MAGIC, SCHEMA, 0, checksum(body, SCHEMA)) + body, Call).tools == 0


def test_foreign_bytes_are_refused() -> None:
    for data in (b"", b"AGL", b'{"id": "a"}', b"\x00" * 64):
        with pytest.raises(WireError, match="not Agent Lightning's"):
            decode(data, Task)


def test_an_unknown_kind_and_another_kind_are_refused() -> None:
    body = msgspec.msgpack.encode({"type": "Tensor"})
    with pytest.raises(WireError, match="Invalid value 'Tensor'"):
        decode(HEADER.pack(MAGIC, SCHEMA, 0, checksum(body, SCHEMA)) + body, Record)
    with pytest.raises(WireError, match="do not hold Task: Invalid value 'Reward'"):
        decode(encode(Reward(attempt_id="a", value=1)), Task)
    with pytest.raises(WireError):
        decode(encode([Task("a", 1)]), Task)
    with pytest.raises(WireError, match="mode"):
        decode(encode(Rollout(task=Task("a", 1), mode="play")), Rollout)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [{1: "a"}, {"a": [b"bytes"]}, {"a": {1, 2}}, object(), {"a": np.float32(1)}])
def test_content_that_json_cannot_hold_is_refused_and_named(content: Any) -> None:
    span = Span(id="s7", attempt_id="a", kind="note", name="n", attributes={"deep": content})
    with pytest.raises(WireError, match=r"Span s7: attributes\['deep'\]"):
        encode(span)
    with pytest.raises(WireError, match="Task t: input"):
        encode(Task("t", content))


def test_content_that_refers_to_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(WireError, match="attributes refers to itself"):
        encode(Span(attempt_id="a", kind="note", name="n", attributes=loop))


def test_subclasses_of_plain_types_come_back_plain() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    content = {"a": [1, np.float64(2)], "b": Colour.RED, "c": (1, 2)}
    attributes = decode(encode(Span(attempt_id="a", kind="note", name="n", attributes=content)), Span).attributes
    assert attributes == {"a": [1, 2.0], "b": "red", "c": [1, 2]}
    assert type(attributes["a"][1]) is float
    assert type(attributes["b"]) is str


def test_every_field_of_content_is_checked() -> None:
    for kind in WireValue.__subclasses__():
        content = {field.name for field in msgspec.structs.fields(kind) if field.type in (Any, dict[str, Any])}
        assert content == {name for name, is_json in _CONTENT.get(kind, ()) if is_json}


def test_an_array_type_is_known_by_its_elements_however_it_is_spelled() -> None:
    # numpy 2.5 gives `NDArray[np.int32]` resolved to decoders on Python 3.12, so that it equals no alias of ours
    data = encode(np.array([1, 2], np.int32))
    assert decode(data, np.ndarray[Any, np.dtype[np.int32]]).tolist() == [1, 2]
    with pytest.raises(WireError, match="float32"):
        decode(data, np.ndarray[Any, np.dtype[np.float32]])
