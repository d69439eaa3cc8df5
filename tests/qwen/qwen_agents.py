"""Agents with two tools, in each framework and with the official clients. The first call of each is forced, because the small model does
not begin a tool call by itself."""

from __future__ import annotations

from typing import Any

import agentlightning as agl

QUESTION = "What is 12 times 7? Call multiply, then say the result."
REPEATS = "The small model calls its tool again and again."
TOOL_NAMES = ("multiply", "weather")


def multiply(a: int, b: int) -> str:
    """Multiplies two whole numbers."""
    return str(a * b)


def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


SCHEMAS: dict[str, Any] = {
    "multiply": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


async def solve(task: dict[str, str], llm: agl.LLM) -> float:
    """Run the agent that the task names. Its reward is 1 if it ends with a text."""
    return float(bool(await AGENTS[task["agent"]](llm)))


async def langchain(llm: agl.LLM) -> str:
    from langchain.agents import create_agent
    from langchain.agents.middleware import wrap_model_call
    from langchain_openai import ChatOpenAI
    from langgraph.errors import GraphRecursionError

    @wrap_model_call  # type: ignore[arg-type]
    async def force_first(request: Any, handler: Any) -> Any:
        first = not any(message.type == "tool" for message in request.messages)
        return await handler(request.override(tool_choice="multiply") if first else request)

    model = ChatOpenAI(model=llm.model, base_url=llm.base_url, api_key=llm.api_key)  # type: ignore[arg-type]
    agent = create_agent(model, [multiply, weather], middleware=[force_first])  # type: ignore[list-item]
    try:
        state = await agent.ainvoke({"messages": [{"role": "user", "content": QUESTION}]}, {"recursion_limit": 8})
    except GraphRecursionError:
        return REPEATS
    return str(state["messages"][-1].content)


async def openai_agents(llm: agl.LLM) -> str:
    import openai
    from agents import Agent, MaxTurnsExceeded, ModelSettings, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool

    client = openai.AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key)
    agent = Agent(
        name="solver",
        tools=[function_tool(multiply), function_tool(weather)],
        model=OpenAIChatCompletionsModel(llm.model, client),
        model_settings=ModelSettings(tool_choice="multiply"),
    )
    try:
        result = await Runner.run(agent, QUESTION, max_turns=4, run_config=RunConfig(tracing_disabled=True))
    except MaxTurnsExceeded:
        return REPEATS
    return str(result.final_output)


async def autogen(llm: agl.LLM) -> str:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_core.models import ModelInfo
    from autogen_core.tools import FunctionTool
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    tools: list[Any] = [FunctionTool(multiply, description="Multiplies two whole numbers."), FunctionTool(weather, description="Weather.")]

    class ForcesFirst(OpenAIChatCompletionClient):
        calls = 0

        async def create(self, messages: Any, **arguments: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                arguments["tool_choice"] = tools[0]
            return await super().create(messages, **arguments)

    info = ModelInfo(vision=False, function_calling=True, json_output=False, family="unknown", structured_output=False)
    client = ForcesFirst(model=llm.model, base_url=llm.base_url, api_key=llm.api_key, model_info=info)
    result = await AssistantAgent("solver", client, tools=tools, max_tool_iterations=3).run(task=QUESTION)
    return str(result.messages[-1])


async def openai_client(llm: agl.LLM) -> str:
    return await _openai(llm, stream=False)


async def openai_stream(llm: agl.LLM) -> str:
    return await _openai(llm, stream=True)


async def _openai(llm: agl.LLM, *, stream: bool) -> str:
    import openai

    tools: Any = [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in TOOL_NAMES]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    choice: Any = {"type": "function", "function": {"name": "multiply"}}
    async with openai.AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        for turn in range(2):
            fields: dict[str, Any] = {"model": llm.model, "messages": messages, "tools": tools, "tool_choice": "auto" if turn else choice}
            if stream:
                async with client.chat.completions.stream(**fields) as events:
                    message = (await events.get_final_completion()).choices[0].message
            else:
                message = (await client.chat.completions.create(**fields)).choices[0].message
            messages.append(message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
            calls = message.tool_calls or []
            messages += [{"role": "tool", "tool_call_id": call.id, "content": "84"} for call in calls]
            if not calls:
                break
    return str(message.content or message.tool_calls)


async def anthropic_client(llm: agl.LLM) -> str:
    return await _anthropic(llm, stream=False)


async def anthropic_stream(llm: agl.LLM) -> str:
    return await _anthropic(llm, stream=True)


async def _anthropic(llm: agl.LLM, *, stream: bool) -> str:
    import anthropic

    tools: Any = [{"name": name, "input_schema": SCHEMAS[name]} for name in TOOL_NAMES]
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    async with anthropic.AsyncAnthropic(base_url=llm.base_url.removesuffix("/v1"), api_key=llm.api_key) as client:
        for turn in range(2):
            choice: Any = {"type": "auto"} if turn else {"type": "tool", "name": "multiply"}
            fields: dict[str, Any] = {
                "model": llm.model, "messages": messages, "tools": tools, "tool_choice": choice, "max_tokens": 48,
            }  # fmt: skip
            if stream:
                async with client.messages.stream(**fields) as events:
                    message = await events.get_final_message()
            else:
                message = await client.messages.create(**fields)
            messages.append({"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in message.content]})
            uses = [block for block in message.content if block.type == "tool_use"]
            if not uses:
                break
            messages.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "84"} for use in uses]})
    return str(message.content)


AGENTS: dict[str, Any] = {
    "langchain": langchain,
    "openai_agents": openai_agents,
    "autogen": autogen,
    "openai_client": openai_client,
    "openai_stream": openai_stream,
    "anthropic_client": anthropic_client,
    "anthropic_stream": anthropic_stream,
}
