"""A framework for agents, for the example of CONTRIBUTING.md. Nothing here knows of Agent Lightning."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


class Agent:
    def __init__(self, name: str, client: Any, model: str, tools: list[Callable[..., Any]]) -> None:
        self.name, self.client, self.model = name, client, model
        self.tools = {tool.__name__: tool for tool in tools}

    async def run(self, question: str) -> str:
        messages: list[Any] = [{"role": "user", "content": question}]
        while True:
            message = await self.ask_model(messages)
            messages.append(message.model_dump(exclude_none=True))
            if not message.tool_calls:
                return message.content
            for call in message.tool_calls:
                result = await self.use_tool(call)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})

    async def ask_model(self, messages: list[Any]) -> Any:
        parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
        tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in self.tools]
        completion = await self.client.chat.completions.create(model=self.model, messages=messages, tools=tools)
        return completion.choices[0].message

    async def use_tool(self, call: Any) -> Any:
        return self.tools[call.function.name](**json.loads(call.function.arguments))
