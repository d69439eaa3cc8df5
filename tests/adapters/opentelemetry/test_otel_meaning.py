"""What an OpenTelemetry span means, by convention."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.capture.otel.meaning import EndedSpan, Meaning, read

CALL = "0123456789abcdef0123456789abcdef"


def meaning(
    name: str = "a span", *, scope: str = "", events: Any = (), failed: bool = False, error: str | None = None, **attributes: Any
) -> Meaning:
    attributes = {key.replace("__", "."): value for key, value in attributes.items()}
    return read(
        EndedSpan(
            id="1",
            parent_id=None,
            name=name,
            scope=scope,
            started=1.0,
            ended=2.0,
            attributes=attributes,
            events=events,
            failed=failed,
            error=error,
        )
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"http.request.method": "POST"},
        {"openinference.span.kind": "CHAIN"},
        {"openinference.span.kind": "EMBEDDING"},
        {"gen_ai.operation.name": "embeddings"},
        {"gen_ai.operation.name": "create_agent"},
        {"gen_ai.operation.name": "invoke_workflow"},
        {"ai.operationId": "ai.embed"},
        {"ai.operationId": "ai.generateText"},
    ],
)
def test_a_span_without_an_agent_a_tool_or_a_model_call_is_plumbing(attributes: dict[str, Any]) -> None:
    assert meaning(**attributes).kind is None


@pytest.mark.parametrize(
    ("attributes", "kind", "name"),
    [
        ({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "writer"}, "agent", "writer"),
        ({"openinference.span.kind": "AGENT", "agent.name": "writer"}, "agent", "writer"),
        ({"ai.operationId": "ai.streamText", "ai.telemetry.functionId": "writer"}, "agent", "writer"),
        ({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "add"}, "tool", "add"),
        ({"openinference.span.kind": "TOOL", "tool.name": "add"}, "tool", "add"),
        ({"openinference.span.kind": "RETRIEVER"}, "tool", "a span"),
        ({"ai.operationId": "ai.toolCall", "ai.toolCall.name": "add"}, "tool", "add"),
        ({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}, "llm", "m"),
        ({"openinference.span.kind": "LLM", "llm.model_name": "m"}, "llm", "m"),
        ({"ai.operationId": "ai.streamText.doStream", "ai.model.id": "m"}, "llm", "m"),
    ],
)
def test_agents_tools_and_model_calls_are_known_by_each_convention(attributes: dict[str, Any], kind: str, name: str) -> None:
    assert (meaning(**attributes).kind, meaning(**attributes).name) == (kind, name)


@pytest.mark.parametrize(
    ("name", "kind", "agent"),
    [("writer.run", "AGENT", "writer"), ("writer._execute_core", "AGENT", "writer"), ("double.acall", "TOOL", "double")],
)
def test_a_name_is_that_of_the_span_without_the_method(name: str, kind: str, agent: str) -> None:
    assert meaning(name, **{"openinference.span.kind": kind}).name == agent


def test_an_agent_without_a_name_has_that_of_its_span() -> None:
    assert meaning("invoke_agent helper", **{"gen_ai.operation.name": "invoke_agent"}).name == "helper"


@pytest.mark.parametrize(
    "attributes",
    [
        {"gen_ai.response.id": f"chatcmpl-{CALL}"},
        {"gen_ai.response.id": f"msg_{CALL}"},
        {"gen_ai.response.id": f"resp_{CALL}"},
        {"ai.response.id": f"chatcmpl-{CALL}", "ai.operationId": "ai.generateText.doGenerate"},
        {"openinference.span.kind": "LLM", "output.value": f'{{"id": "chatcmpl-{CALL}", "choices": []}}'},
        {"openinference.span.kind": "LLM", "output.value": f'{{"system_fingerprint": "{CALL}"}}'},
        {"openinference.span.kind": "LLM", "output.value": f'{{"raw": {{"id": "chatcmpl-{CALL}"}}}}'},
    ],
)
def test_a_model_call_names_the_recorded_call_by_the_id_of_its_answer(attributes: dict[str, Any]) -> None:
    attributes = attributes if len(attributes) > 1 else {"gen_ai.operation.name": "chat", **attributes}
    read = meaning(**attributes)
    assert (read.call_id, "unjoined" in read.attributes, "output" in read.attributes) == (CALL, False, False)


@pytest.mark.parametrize("id", ["chatcmpl-C9xyz", "gen-123", "resp_68af0d7ab6d08195a6b4a5a80b4b7a540f3f4c4f8d1c2b3a", None])
def test_the_answer_of_a_vendor_names_no_recorded_call(id: str | None) -> None:
    read = meaning(**{"gen_ai.operation.name": "chat", "gen_ai.response.id": id, "gen_ai.output.messages": '[{"role": "assistant"}]'})
    assert read.call_id is None
    assert read.attributes["unjoined"] == "its span names no answer of the gateway (gen_ai.response.id)"
    assert read.attributes["output"] == [{"role": "assistant"}]


def test_a_model_call_has_its_sampling_usage_and_reason_to_finish() -> None:
    told = {"gen_ai.request.temperature": 0.5, "gen_ai.usage.input_tokens": 3, "gen_ai.response.finish_reasons": ("stop",)}
    read = meaning(**{"gen_ai.operation.name": "chat", "gen_ai.response.id": CALL, **told})
    assert read.attributes == {"sampling": {"temperature": 0.5}, "usage": {"input_tokens": 3}, "finish_reason": "stop"}
    other = {
        "openinference.span.kind": "LLM",
        "llm.invocation_parameters": '{"temperature": 0.5, "model": "m"}',
        "llm.token_count.prompt": 3,
    }
    assert meaning(**other).attributes["sampling"] == {"temperature": 0.5}
    assert meaning(**other).attributes["usage"] == {"input_tokens": 3}


def test_a_tool_has_its_input_its_output_and_the_id_of_its_call() -> None:
    told = {"gen_ai.tool.call.id": "c1", "gen_ai.tool.call.arguments": '{"x": 4}', "gen_ai.tool.call.result": "8"}
    assert meaning(**{"gen_ai.operation.name": "execute_tool", **told}).attributes == {
        "input": {"x": 4}, "output": "8", "tool_call_id": "c1",
    }  # fmt: skip


def test_a_tool_may_tell_its_input_and_output_as_events() -> None:
    events = (("gen_ai.tool.message", {"content": '{"x": 4}'}), ("gen_ai.choice", {"message": "8"}))
    assert meaning(events=events, **{"gen_ai.operation.name": "execute_tool"}).attributes == {"input": {"x": 4}, "output": "8"}


def test_a_tool_that_fails_has_its_exception_else_its_status() -> None:
    events = (("exception", {"exception.type": "ValueError", "exception.message": "no"}),)
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.result": "x"}
    assert meaning(events=events, failed=True, **tool).attributes == {"error": "ValueError: no"}
    assert meaning(failed=True, error="down", **tool).attributes == {"error": "down"}
    assert meaning(failed=True, **tool).attributes == {"error": "failed"}


def test_a_guardrail_is_a_tool_that_no_model_asked_for() -> None:
    assert meaning(**{"openinference.span.kind": "GUARDRAIL"}).attributes == {"guardrail": True}


def test_a_dspy_module_is_an_agent_unless_it_is_a_single_call() -> None:
    names = ("Writer.forward", "ReAct.aforward", "Predict.forward", "ChainOfThought.aforward", "Predict(StringSignature).forward")
    kinds = [meaning(name, scope="openinference.instrumentation.dspy", **{"openinference.span.kind": "CHAIN"}).name for name in names]
    assert kinds == ["Writer", "ReAct", "", "", ""]


def test_a_llamaindex_step_names_the_agent_around_it_and_a_helper_is_no_call() -> None:
    scope = "openinference.instrumentation.llama_index"
    step = {"openinference.span.kind": "CHAIN", "output.value": "AgentOutput(current_agent_name='writer')"}
    assert meaning("BaseWorkflowAgent.parse_agent_output", scope=scope, **step) == Meaning(None, agent="writer")
    assert meaning("FunctionAgent.run", scope=scope, **{"openinference.span.kind": "CHAIN"}).kind == "agent"
    assert meaning("AgentWorkflow.run", scope=scope, **step).kind is None
    assert meaning("OpenAI._prepare_chat_with_tools", scope=scope, **{"openinference.span.kind": "LLM"}).kind is None
