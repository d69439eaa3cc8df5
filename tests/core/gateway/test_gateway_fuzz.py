"""Requests made from the schemas of all endpoints, with faults put in: none is answered by a 5xx, and every one is counted.

`AGL_FUZZ_REQUESTS=5000` (`make test-fuzz`) sends more of them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from agentlightning.gateway import Gateway
from agentlightning.gateway.api.anthropic_messages import MessagesRequest
from agentlightning.gateway.api.openai_completions import CompletionsRequest
from agentlightning.gateway.api.openai_responses import ResponsesRequest
from agentlightning.gateway.api.rewards import Posted
from agentlightning.gateway.api.schema import ChatRequest
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.types import Rollout, Sampling, Task, new_id

REQUESTS = int(os.environ.get("AGL_FUZZ_REQUESTS", "300"))
TYPES: dict[str, Any] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/completions": CompletionsRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": MessagesRequest,
    "/v1/reward": Posted,
}
UNCOUNTED = ("/v1/messages/count_tokens", "/v1/reward")
"""Paths whose requests are no calls."""
LITERALS: dict[str, list[Any]] = {
    "model": ["scripted"],
    "role": ["system", "developer", "user", "assistant", "tool", "function"],
    "type": ["function", "text", "message", "function_call", "function_call_output", "reasoning", "tool_use", "tool_result", "refusal",
             "json_schema", "json_object", "auto", "any", "tool", "custom", "enabled", "object", "input_text"],
    "tool_choice": ["auto", "none", "required"],
    "max_tokens": [1, 5], "max_completion_tokens": [3], "max_output_tokens": [3], "n": [1, 2], "temperature": [0, 1], "top_p": [0.5, 1],
    "top_k": [-1, 0, 5], "stream": [True, False], "arguments": ["{}", '{"a": [1]}', "not json", "[" * 3000],
    "input_schema": [{}], "truncation": ["auto"], "logprobs": [True, 1], "include": [["message.output_text.logprobs"]],
}  # fmt: skip
"""Values that a field of this name often has, so that many requests get through to the model."""
texts = st.text(max_size=8) | st.sampled_from(["", "a", "<|im_end|>", "\x00", "💥", "{% for %}", "CALL f(", "</think>", "\u2028"])
PLAIN = {"content": texts, "input": texts, "output": texts, "stop": st.just(["x"]), "previous_response_id": st.none()}
"""Values that most requests have here."""
EXTENSIONS = ("min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "continue_final_message", "add_generation_prompt",
              "chat_template_kwargs", "guided_json", "guided_regex", "structured_outputs", "thread", "user", "store", "a\nb")  # fmt: skip
numbers = st.integers(-2, 40) | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, -0.0, 1e-320, 0.5])
junk: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
keywords = ("type", "properties", "items", "required", "enum", "anyOf", "additionalProperties", "description", "$ref", "$defs", "default")
tool_schemas = st.recursive(
    st.sampled_from([{}, {"type": "string"}, {"type": ["integer", "null"]}, True]),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("object"),
            "properties": st.dictionaries(texts, inner, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner),
        },
    ),
    max_leaves=4,
)
broken_schemas = st.dictionaries(st.sampled_from(keywords), junk | tool_schemas, max_size=4)


def rarely(value: SearchStrategy[Any], otherwise: SearchStrategy[Any], chance: int = 60) -> SearchStrategy[Any]:
    return st.integers(1, chance).flatmap(lambda roll: otherwise if roll == 1 else value)


def strategy(schema: dict[str, Any], definitions: dict[str, Any], name: str = "") -> SearchStrategy[Any]:
    """Values of a JSON schema, and now and then something else."""
    if name in ("parameters", "input_schema", "schema"):
        return rarely(tool_schemas, broken_schemas, 3)
    if name in PLAIN:
        return rarely(PLAIN[name], strategy(schema, definitions), 4)
    if "$ref" in schema:
        inner = definitions[schema["$ref"].rpartition("/")[2]]
        return st.deferred(lambda: strategy(inner, definitions, name))
    if "anyOf" in schema:
        value = st.one_of([strategy(option, definitions, name) for option in schema["anyOf"]])
    elif schema.get("type") == "object" and "properties" in schema:
        fields = {key: strategy(inner, definitions, key) for key, inner in schema["properties"].items()}
        required = {key: fields.pop(key) for key in schema.get("required", ())}
        wanted = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True) if fields else st.just([])
        value = wanted.flatmap(lambda keys: st.fixed_dictionaries({**required, **{key: fields[key] for key in keys}}))
    elif schema.get("type") == "object":
        value = st.dictionaries(texts, junk, max_size=3)
    elif schema.get("type") == "array":
        value = st.lists(strategy(schema.get("items", {}), definitions, name), min_size=int(name in ("messages", "prompt")), max_size=3)
    else:
        plain: dict[Any, SearchStrategy[Any]] = {
            "string": texts, "integer": st.integers(0, 50), "number": st.floats(0, 2), "boolean": st.booleans(), "null": st.none(),
        }  # fmt: skip
        value = plain.get(schema.get("type"), junk)
    if name in LITERALS and schema.get("type") in ("string", "integer", "number", "boolean", None):
        value = rarely(st.sampled_from(LITERALS[name]), value, 15)
    return rarely(value, junk)


def bodies(type: Any) -> SearchStrategy[bytes]:
    """Bodies for a type, as bytes; some are broken."""
    schema = msgspec.json.schema(type)
    value = strategy(schema, schema.get("$defs", {}))
    extended = st.tuples(value, st.dictionaries(st.sampled_from(EXTENSIONS), junk | st.booleans(), max_size=2)).map(
        lambda pair: {**pair[1], **pair[0]} if isinstance(pair[0], dict) else pair[0]
    )
    good = extended.map(lambda body: json.dumps(body).encode())
    return rarely(good, st.tuples(good, st.integers(0, 200), st.sampled_from(FAULTS)).map(lambda broken: spoilt(*broken)), 8)


FAULTS = (b"", b"\xff", b"[" * 1200, b"\xef\xbb\xbf", b"\x00", b'"\\ud800"', b"1e999", b",", b"NaN", b"9" * 5000)


def spoilt(body: bytes, place: int, fault: bytes) -> bytes:
    """The body with a fault in it; an empty fault cuts it off."""
    at = min(place, len(body))
    return body[:at] + fault + (body[at:] if fault else b"")


class Fuzzed:
    """A gateway, the keys of its callers, and what came of the requests."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store("memory:")
        self.gateway = Gateway(self.store, ScriptedEngine(folder, lambda prompt, sampling: "fine"), token="secret")
        self.statuses: Counter[int] = Counter()
        self.counted: Counter[str] = Counter()

    async def start(self) -> None:
        await self.gateway.start()
        modes: tuple[dict[str, Any], ...] = ({"mode": "train", "sampling": Sampling()}, {"mode": "production"})
        rollouts = [Rollout(task=Task(new_id(), None), **fields) for fields in modes]
        self.attempts = [await self.store.begin(rollout, "test", lease=3600) for rollout in rollouts]
        self.client = httpx.Client(base_url=self.gateway.base_url.removesuffix("/v1"), timeout=120)

    def send(self, path: str, body: bytes, key: str, headers: dict[str, str]) -> None:
        answer = self.client.post(path, content=body, headers=httpx.Headers({**headers, "x-api-key": key}, encoding="latin-1"))
        self.statuses[answer.status_code] += 1
        self.counted[key] += path not in UNCOUNTED
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"], answer.text
        else:
            assert '"server_error"' not in answer.text
            assert '"api_error"' not in answer.text


@pytest.fixture(scope="module")
def fuzzed(tokenizer_folder: Path) -> Iterator[Fuzzed]:
    world = Fuzzed(tokenizer_folder)
    asyncio.run(world.start())
    yield world
    world.client.close()
    asyncio.run(world.gateway.stop())


@pytest.mark.parametrize("path", TYPES)
def test_no_request_of_any_shape_is_answered_by_a_fault_of_the_server(fuzzed: Fuzzed, path: str) -> None:
    keys = st.sampled_from([*(attempt.key for attempt in fuzzed.attempts)] * 2 + ["secret", "wrong"])
    asked = st.sampled_from([None, None, "", "own", "x" * 300, "\xad"])
    retries = st.sampled_from(["0", "1", "9" * 5000, "-1"])

    @settings(
        max_examples=max(1, REQUESTS // len(TYPES)),
        deadline=None,
        derandomize=REQUESTS <= 300,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(bodies(TYPES[path]), keys, asked, retries)
    def send(body: bytes, key: str, asked: str | None, retries: str) -> None:
        own = {} if asked is None else {"X-AGL-Call-Id": asked}
        fuzzed.send(path, body, key, {**own, "x-stainless-retry-count": retries})

    send()


def test_every_request_of_the_fuzz_is_counted(fuzzed: Fuzzed) -> None:
    assert sum(fuzzed.statuses.values()) >= REQUESTS // 2
    for attempt in fuzzed.attempts:
        records = asyncio.run(fuzzed.store.records(attempt.id))
        statuses = Counter(call.status for call in records.calls)
        assert statuses["error"] == 0
        assert sum(statuses.values()) == fuzzed.counted[attempt.key]
    print(f"fuzz: {sum(fuzzed.statuses.values())} requests, {dict(fuzzed.statuses)}")
