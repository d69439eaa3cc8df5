"""Finished rollouts reach a real OTLP receiver as spans of the GenAI conventions. A dead one costs a run nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from otlp_receiver import Receiver

import agentlightning as agl
from agentlightning.capture.otel.assembly import Assembly
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError
from agentlightning.gateway.api.otlp import PROTOBUF, read_spans
from agentlightning.stores.common import open_store
from agentlightning.telemetry.genai import Scores, genai_spans, trace_id
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.otlp_sender import OTLPSender
from agentlightning.training import trace_export
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.trace_export import open_export
from agentlightning.types import Attempt, Call, Completion, Reward, Rollout, Sampling, Span, Task, new_id
from agentlightning_torch.testing import tiny_model
from gateway_house import tokenizer_folder

__all__ = ["tokenizer_folder"]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        monkeypatch.delenv(name, raising=False)
    server = Receiver()
    yield server
    server.close()


async def recorded(store: LightningStore) -> tuple[Rollout, Attempt, str]:
    """A rollout: an agent asks its model, uses a tool, and asks again without an adapter's span. Returns it, and the first call."""
    rollout = Rollout(task=Task("sum", {"question": "1 + 1"}), mode="train", group="g", step=3)
    attempt = await store.begin(rollout, "w", lease=60)
    calls = [Call(id=new_id(), attempt_id=attempt.id, index=n, status="completed", started=10.0 + n, ended=10.5 + n) for n in range(2)]
    message = {"role": "assistant", "content": "two", "tool_calls": [{"id": "t1", "function": {"name": "add", "arguments": "{}"}}]}
    completions = [
        Completion(
            call_id=call.id, attempt_id=attempt.id, prompt_ids=np.arange(5 + n), response_ids=np.arange(3), logprobs=None, message=message,
            versions=np.full(3, 7), sampling=Sampling(temperature=0.5, seed=9, max_tokens=30), finish_reason="stop",
        )
        for n, call in enumerate(calls)
    ]  # fmt: skip
    agent = Span(attempt_id=attempt.id, kind="agent", name="solver", agent="solver", started=9.0, ended=13.0)
    asked = Span(
        attempt_id=attempt.id, kind="llm", name="m", agent="solver", parent_id=agent.id, call_id=calls[0].id, started=10.0, ended=10.5
    )
    tool = Span(
        attempt_id=attempt.id, kind="tool", name="add", agent="solver", parent_id=agent.id, started=11.0, ended=11.2,
        attributes={"input": {"a": 1}, "error": "ValueError: no", "tool_call_id": "t1"},
    )  # fmt: skip
    rewards = [Reward(attempt_id=attempt.id, value=0.75, name="return"), Reward(attempt_id=attempt.id, value=-1, call_id=calls[0].id)]
    await store.record([*completions, *calls, agent, asked, tool, *rewards])
    await store.finish(attempt.id, "succeeded")
    return rollout, attempt, calls[0].id


async def until(condition: Any, seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true in time")


async def test_a_rollout_arrives_with_its_tokens_rewards_and_advantages(receiver: Receiver) -> None:
    store = open_store("memory:")
    rollout, attempt, first = await recorded(store)
    state, (records,) = await store.read(rollout.id)
    scores = Scores(reward=0.75, advantages={completion.id: 1.25 for completion in records.completions})
    sender = OTLPSender(receiver.url)
    assert sender.export(sender.trace(trace_id(attempt.id), genai_spans(state, records, scores, model="tiny")))
    [root] = receiver.named("rollout sum")
    assert {span["trace"] for span in receiver.spans} == {attempt.id}
    assert root["attributes"]["gen_ai.operation.name"] == "invoke_workflow"
    assert (root["attributes"]["agl.reward"], root["attributes"]["agl.advantage"], root["attributes"]["agl.step"]) == (0.75, 1.25, 3)
    assert root["events"] == [
        ("gen_ai.evaluation.result",
         {"gen_ai.evaluation.name": "return", "gen_ai.evaluation.score.value": 0.75, "agl.reward.source": "agent"}),
    ]  # fmt: skip
    [agent], [tool], calls = receiver.named("invoke_agent solver"), receiver.named("execute_tool add"), receiver.named("chat tiny")
    assert (root["parent"], agent["parent"], tool["parent"]) == ("", root["id"], agent["id"])
    assert {call["parent"] for call in calls} == {agent["id"], root["id"]}  # the second has no span of an adapter
    [asked] = [call for call in calls if call["parent"] == agent["id"]]
    about = asked["attributes"]
    assert (about["gen_ai.response.id"], about["gen_ai.request.model"], about["gen_ai.agent.name"]) == (first, "tiny", "solver")
    assert (about["gen_ai.usage.input_tokens"], about["gen_ai.usage.output_tokens"]) == (5, 3)
    assert (about["gen_ai.request.temperature"], about["gen_ai.request.seed"], about["agl.policy.version"]) == (0.5, 9, 7)
    assert (about["agl.reward"], about["agl.advantage"]) == (-1.0, 1.25)
    assert (tool["failed"], tool["attributes"]["error.type"], asked["failed"]) == (True, "ValueError", False)
    assert asked["kind"] == 3  # a client's
    assert asked["seconds"] == pytest.approx(0.5)
    assert root["resource"]["service.name"] == "agentlightning"
    assert not any(text in str(span) for span in receiver.spans for text in ("two", "1 + 1", "ValueError: no"))  # content is asked for
    await store.close()


async def test_content_leaves_only_when_the_standard_variable_says_so(receiver: Receiver) -> None:
    store = open_store("memory:")
    rollout, _, _ = await recorded(store)
    state, (records,) = await store.read(rollout.id)
    spans = genai_spans(state, records, Scores(), model="tiny", content=True)
    call = next(span for span in spans if span.is_call)
    assert '"content": "two"' in call.attributes["gen_ai.output.messages"]
    assert '"name": "add"' in call.attributes["gen_ai.output.messages"]
    assert spans[0].attributes["agl.task.input"] == '{"question": "1 + 1"}'
    assert "agl.reward" not in spans[0].attributes  # not scored is not zero
    assert "agl.advantage" not in spans[0].attributes
    tool = next(span for span in spans if span.name == "execute_tool add")
    assert tool.attributes["gen_ai.tool.call.arguments"] == '{"a": 1}'
    assert "gen_ai.tool.call.result" not in tool.attributes  # it failed
    await store.close()


async def test_our_own_ingest_reads_the_same_tree(receiver: Receiver) -> None:
    """The export and the gateway's `/v1/traces` have one vocabulary."""
    store = open_store("memory:")
    rollout, attempt, _ = await recorded(store)
    state, (records,) = await store.read(rollout.id)
    sender = OTLPSender(receiver.url)
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    body = encode_spans(sender.trace(trace_id(attempt.id), genai_spans(state, records, Scores(), model="m"))).SerializeToString()
    spans, invalid = read_spans(body, PROTOBUF)
    read = [span for span in Assembly("other").add(spans) if span.kind != "link"]
    assert invalid == 0
    names = {span.id: span.name for span in read}
    assert {(span.kind, span.name, names.get(span.parent_id or ""), span.call_id) for span in read} == {
        ("agent", "solver", None, None), ("tool", "add", "solver", None), ("llm", "m", "solver", records.calls[0].id),
        ("llm", "m", None, records.calls[1].id),
    }  # fmt: skip
    sender.close()
    await store.close()


async def test_a_dead_receiver_delays_nobody_and_what_it_misses_is_counted(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_export, "QUEUE", 20)
    monkeypatch.setattr(trace_export, "PATIENCE", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"  # nobody listens
    store, metrics = open_store("memory:"), Metrics()
    rollout, _, _ = await recorded(store)
    state, _ = await store.read(rollout.id)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        async with open_export(store, dead, "tiny", metrics) as export:
            assert export is not None
            for _ in range(100):
                offered = time.monotonic()
                export.finished(state)
                assert time.monotonic() - offered < 0.05
    assert time.monotonic() - began < 5
    assert export.dropped == 100
    assert metrics.registry.get_sample_value("agl_exported_rollouts_total", {"result": "dropped"}) == 100
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["100 of 100 rollouts did not reach the OpenTelemetry receiver."]
    await store.close()


async def test_a_receiver_that_comes_back_gets_the_next_rollouts(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    store, metrics = open_store("memory:"), Metrics()
    rollout, _, _ = await recorded(store)
    state, _ = await store.read(rollout.id)
    receiver.status = 400
    with caplog.at_level(logging.WARNING):
        async with open_export(store, receiver.url, "tiny", metrics) as export:
            assert export is not None
            export.finished(state)
            await until(lambda: export.dropped == 1)
            receiver.status = 200
            export.finished(state)
            await until(lambda: export.sent == 1)
    assert receiver.named("rollout sum")[0]["attributes"]["agl.reward"] == 0.75  # read from the store
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("The OpenTelemetry receiver takes no spans")
    assert messages[1:] == ["The OpenTelemetry receiver takes spans again.", "1 of 2 rollouts did not reach the OpenTelemetry receiver."]
    await store.close()


async def test_without_an_endpoint_nothing_is_exported(receiver: Receiver) -> None:
    async with open_export(open_store("memory:"), None, "tiny", Metrics()) as export:
        assert export is None


def test_a_run_exports_training_and_evaluation(receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)  # the standard variable is enough
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-project=lightning")
    from openai import OpenAI

    def agent(task: Any, llm: agl.LLM) -> float:
        with OpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            messages: list[Any] = [{"role": "user", "content": str(task)}]
            answer = client.chat.completions.create(model=llm.model, messages=messages, max_tokens=4)
        return float(len(answer.choices[0].message.content or "") % 5)

    run = agl.train(
        agent, tasks=["a", "b"], eval_tasks=["c"], model=tiny_model(tmp_path / "model").path, steps=1, tasks_per_step=2, progress=False,
        algorithm=agl.LightningRL(group_size=3), folder=str(tmp_path), eval={"greedy": False},
    )  # fmt: skip
    batch = RunFolder.open(run.folder).read_batches()
    roots = {span["attributes"]["agl.rollout.id"]: span for span in receiver.named("rollout ")}
    assert sum(root["attributes"]["agl.mode"] == "eval" for root in roots.values()) == 2  # before and after
    training = {id: root for id, root in roots.items() if root["attributes"]["agl.mode"] == "train"}
    assert training.keys() == batch.keys()
    for id, root in training.items():
        assert root["attributes"]["agl.advantage"] == pytest.approx(batch[id].advantages[0])
        assert root["attributes"]["agl.reward"] == pytest.approx(batch[id].returns[0])
    assert len(receiver.named("chat ")) == 8
    assert {headers["x-project"] for headers in receiver.headers} == {"lightning"}


def test_an_endpoint_that_is_no_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="otlp_endpoint is 'localhost:4318'"):
        agl.train(lambda task, llm: 1.0, tasks=["a"], model="tiny", otlp_endpoint="localhost:4318", folder=str(tmp_path))


def test_spans_of_the_same_records_are_equal() -> None:
    attempt = Attempt(id="not-a-uuid", rollout_id="r", number=1, key="k", worker="w", status="succeeded", started=0.0)
    assert trace_id(attempt.id) == trace_id(structs.replace(attempt, number=2).id)
    assert 0 < trace_id(attempt.id) < 2**128
