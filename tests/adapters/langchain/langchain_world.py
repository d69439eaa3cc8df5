"""What the tests of the LangChain adapter share: a model's replies, models as a user builds them, and a server."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from langchain_openai import ChatOpenAI

from agentlightning.capture.recorder import Recorder
from agentlightning.types import Sampling, Span


def reply(prompt: str, sampling: Sampling) -> str:
    """Calls the first offered tool once, then answers."""
    if prompt.endswith("("):  # made to call a tool
        return "3"
    asked = prompt.rsplit("<|im_start|>user\n", 1)[-1]
    if "Tools:\n" in prompt and "CALL" not in asked:
        return f"CALL {prompt.split('Tools:' + chr(10), 1)[1].split('(', 1)[0]}(3)"
    return "the answer is 3"


def chat(recorder: Recorder, **settings: Any) -> ChatOpenAI:
    """A model as a user builds it from `agl.LLM`."""
    llm = recorder.llm
    return ChatOpenAI(**{"model": llm.model, "base_url": llm.base_url, "api_key": llm.api_key, "max_retries": 0, **settings})


def question(number: int = 0) -> Any:
    return {"messages": [("user", f"question {number}")]}


def names(spans: Collection[Span]) -> list[str | None]:
    return sorted(span.agent or "" for span in spans)


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """Run an ASGI app in a thread of its own; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 5)
