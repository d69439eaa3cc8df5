"""One question to the upstream, of no call of an agent: messages and tools in, a message out."""

from __future__ import annotations

from typing import Any, cast

from agentlightning.errors import EngineError
from agentlightning_upstream.connection import Connection
from agentlightning_upstream.prompt_logprobs import post


async def answer(connection: Connection, body: dict[str, Any]) -> dict[str, Any]:
    """Return the assistant's message for the body of a request. Empty `tools` are left out. Raises `EngineError` for an answer without a
    message, and for one that a token limit cut off."""
    url = f"{connection.url}/chat/completions"
    response = await post(connection, url, {name: value for name, value in body.items() if name != "tools" or value})
    choices: Any = response.get("choices") or [{}]
    choice = cast("dict[str, Any]", choices[0])
    message = choice.get("message")
    if not isinstance(message, dict):
        raise EngineError(f"The server {url} returned no message. Use an OpenAI-compatible server.")
    if choice.get("finish_reason") == "length":
        raise EngineError(f"A token limit cut off the answer of the server {url}. Raise the limit of the server.")
    fields = cast("dict[str, Any]", message)
    return {"role": "assistant", "content": fields.get("content"), "tool_calls": fields.get("tool_calls")}
