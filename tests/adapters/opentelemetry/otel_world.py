"""An agent that emits OpenTelemetry spans by the SDK alone, with the attributes of one of the two conventions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from openai import AsyncOpenAI
from opentelemetry import trace

from agentlightning.types import LLM


class GenAI:
    """The GenAI conventions, set after the start of a span, as many frameworks do."""

    @staticmethod
    def agent(name: str) -> dict[str, Any]:
        return {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name}

    @staticmethod
    def call(model: str) -> dict[str, Any]:
        return {"gen_ai.operation.name": "chat", "gen_ai.request.model": model, "gen_ai.request.temperature": 0.5}

    @staticmethod
    def answer(id: str) -> dict[str, Any]:
        return {"gen_ai.response.id": id, "gen_ai.response.finish_reasons": ("stop",)}

    @staticmethod
    def tool(name: str, call_id: str, arguments: str) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": name, "gen_ai.tool.call.id": call_id,
            "gen_ai.tool.call.arguments": arguments,
        }  # fmt: skip

    @staticmethod
    def result(text: str) -> dict[str, Any]:
        return {"gen_ai.tool.call.result": text}


class OpenInference:
    """The OpenInference conventions, whose model calls name no answer."""

    @staticmethod
    def agent(name: str) -> dict[str, Any]:
        return {"openinference.span.kind": "AGENT", "agent.name": name}

    @staticmethod
    def call(model: str) -> dict[str, Any]:
        return {"openinference.span.kind": "LLM", "llm.model_name": model, "llm.invocation_parameters": '{"temperature": 0.5}'}

    @staticmethod
    def answer(id: str) -> dict[str, Any]:
        return {}

    @staticmethod
    def tool(name: str, call_id: str, arguments: str) -> dict[str, Any]:
        return {"openinference.span.kind": "TOOL", "tool.name": name, "tool_call.id": call_id, "input.value": arguments}

    @staticmethod
    def result(text: str) -> dict[str, Any]:
        return {"output.value": text}


Convention = type[GenAI] | type[OpenInference]


async def run(
    convention: Convention, llm: LLM, tool: Callable[[int], int], question: str, *, name: str = "solver", tracer: trace.Tracer | None = None
) -> str:
    """Ask a model until it calls no tool. Each step is a span that follows no convention."""
    tracer = tracer or trace.get_tracer("an-agent")
    client = AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)
    messages: list[Any] = [{"role": "user", "content": question}]
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    offered: Any = [{"type": "function", "function": {"name": tool.__name__, "description": tool.__doc__, "parameters": schema}}]
    with tracer.start_as_current_span(f"run {name}") as agent:
        agent.set_attributes(convention.agent(name))
        while True:
            with tracer.start_as_current_span("step"):
                message = await ask(tracer, convention, client, llm.model, messages, offered)
                if not message.tool_calls:
                    return message.content or ""
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls:
                    with tracer.start_as_current_span(tool.__name__) as span:
                        span.set_attributes(convention.tool(tool.__name__, call.id, call.function.arguments))
                        result = str(tool(**json.loads(call.function.arguments)))
                        span.set_attributes(convention.result(result))
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


async def ask(tracer: trace.Tracer, convention: Convention, client: AsyncOpenAI, model: str, messages: Any, tools: Any) -> Any:
    with tracer.start_as_current_span("ask") as span:
        attributes: Mapping[str, Any] = convention.call(model)
        span.set_attributes(attributes)
        answer = await client.chat.completions.create(model=model, messages=messages, tools=tools)
        span.set_attributes(convention.answer(answer.id))
        return answer.choices[0].message
