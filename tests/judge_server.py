"""A judge's endpoint for tests: a real server on a real socket, whose answers a function makes."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Answer = Callable[[dict[str, Any]], "str | Response"]
"""From the body of a request to the judge's text, or to a whole response."""


class JudgeServer:
    """Keeps the bodies and the keys of its requests."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        app = Starlette(routes=[Route("/v1/chat/completions", self._reply, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    async def _reply(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.keys.append(request.headers.get("authorization"))
        self.bodies.append(body)
        with self._lock:
            self.in_flight += 1
            self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            from starlette.concurrency import run_in_threadpool

            answer = await run_in_threadpool(self.answer, body)
        finally:
            with self._lock:
                self.in_flight -= 1
        return completion(answer) if isinstance(answer, str) else answer

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def completion(text: str, finish: str = "stop") -> Response:
    return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]})


@contextmanager
def judge_server(answer: Answer) -> Iterator[JudgeServer]:
    server = JudgeServer(answer)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def work(body: dict[str, Any]) -> str:
    """The work that a request shows."""
    return works(body)["work"]


def works(body: dict[str, Any]) -> dict[str, str]:
    """The parts that a request shows, by name: `task`, `work`, `work A`."""
    return dict(re.findall(r"<([\w ]+) [0-9a-f]{8}>\n(.*?)\n</\1 ", body["messages"][1]["content"], re.DOTALL))


def score(value: float, reason: str = "because") -> str:
    return json.dumps({"reason": reason, "score": value})
