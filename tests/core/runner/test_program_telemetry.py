"""A program in another process has structure as well, if it emits OpenTelemetry spans."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from test_program import Shop, shop, swept, tokenizer_folder, write

from agentlightning.config.schema import load_config
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.types import Span

__all__ = ["shop", "swept", "tokenizer_folder"]

PYTHON = """
import os
from openai import OpenAI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("an-agent")
with tracer.start_as_current_span("run", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "writer"}):
    with tracer.start_as_current_span("step"), tracer.start_as_current_span("ask", attributes={"gen_ai.operation.name": "chat"}) as span:
        messages = [{"role": "user", "content": "hi"}]
        answer = OpenAI().chat.completions.create(model=os.environ["AGL_MODEL"], messages=messages)
        span.set_attribute("gen_ai.response.id", answer.id)
    with tracer.start_as_current_span("add", attributes={"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"}):
        pass
print(1.0)
"""
"""As a program is under any OpenTelemetry set-up: the exporter reads the environment."""

CURL = """
import json, os, urllib.request
def post(path, body, headers):
    request = urllib.request.Request(path, json.dumps(body).encode(), {"content-type": "application/json", **headers})
    return json.load(urllib.request.urlopen(request))
ask = {"model": os.environ["AGL_MODEL"], "messages": [{"role": "user", "content": "hi"}]}
key = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
answer = post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", ask, key)
def span(id, parent, attributes):
    pairs = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    return {"traceId": "a" * 32, "spanId": id * 16, "parentSpanId": parent * 16, "name": "x", "attributes": pairs,
            "startTimeUnixNano": "1", "endTimeUnixNano": "2"}
spans = [span("2", "1", {"gen_ai.operation.name": "chat", "gen_ai.response.id": answer["id"]}),
         span("1", "", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "writer"})]
headers = dict([os.environ["OTEL_EXPORTER_OTLP_HEADERS"].split("=", 1)])
post(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, headers)
print(1.0)
"""
"""The protocol without a library, with the same ids in every process."""


def tree(spans: tuple[Span, ...]) -> dict[str, str | None]:
    names = {span.id: span.name for span in spans}
    return {span.name: names.get(span.parent_id or "") for span in spans}


async def test_a_program_with_an_exporter_has_agents_and_tools(shop: Shop, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    line = f"{sys.executable} {write(tmp_path, 'agent.py', PYTHON)}"
    [(state, records), _] = await shop.run(line, 1, 2)
    assert (state.status, [call.status for call in records.calls]) == ("succeeded", ["completed"])
    model = next(span for span in records.spans if span.kind == "llm")
    assert (model.call_id, tree(records.spans)) == (records.calls[0].id, {"writer": None, model.name: "writer", "add": "writer"})


async def test_the_variables_are_enough_and_rollouts_with_equal_ids_stay_apart(shop: Shop, tmp_path: Path) -> None:
    for _, records in await shop.run(f"{sys.executable} {write(tmp_path, 'agent.py', CURL)}", 1, 2, 3):
        model = next(span for span in records.spans if span.kind == "llm")
        assert (model.call_id, tree(records.spans)) == (records.calls[0].id, {"writer": None, model.name: "writer"})


async def test_the_agents_of_a_program_can_be_selected(shop: Shop, tmp_path: Path) -> None:
    [(state, records)] = await shop.run(f"{sys.executable} {write(tmp_path, 'agent.py', CURL)}", 1)
    for agents, trained in ((["writer"], True), (["critic"], False)):
        learned = trajectory(state, [records], agents=agents)
        assert [(transition.agent, transition.trained) for transition in learned.transitions] == [("writer", trained)]
    (tmp_path / "run.toml").write_text('command = "sh agent.sh"\ntasks = "t.jsonl"\nmodel = "m"\nagents = ["writer"]\n')
    assert load_config(tmp_path / "run.toml").agents == ("writer",)


async def test_the_exporter_of_the_user_gives_way(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "HEADERS", "TRACES_HEADERS", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", "the-users-own")
    program = "import os; assert 'the-users-own' not in os.environ.values(); print(1)"
    [(state, _)] = await shop.run(f"{sys.executable} {write(tmp_path, 'agent.py', program)}", 1)
    assert state.status == "succeeded"
