"""A teacher's server for tests, in the form of vLLM's: a real model behind a real socket, with `/tokenize` and `prompt_logprobs`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer


class TeacherServer:
    """Keeps the bodies and the keys of its requests. The next requests are answered by `broken`, while there are any."""

    def __init__(self, folder: str) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.broken: list[Response] = []
        self._lock = threading.Lock()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        routes = [Route("/v1/completions", self.completions, methods=["POST"]), Route("/tokenize", self.tokenize, methods=["POST"])]
        self._server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    async def completions(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        if self.broken:
            return self.broken.pop(0)
        ids = body["prompt"]
        with self._lock, torch.no_grad():
            logprobs = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        entries: list[Any] = [None]
        for place, token in enumerate(ids[1:]):
            best = int(logprobs[place].argmax())
            entries.append({
                str(number): {"logprob": float(logprobs[place, number]), "rank": 1, "decoded_token": self.tokenizer.decode([number])}
                for number in {token, best}
            })  # fmt: skip
        return JSONResponse({"choices": [{"index": 0, "text": "a", "finish_reason": "length", "prompt_logprobs": entries}]})

    async def tokenize(self, request: Request) -> Response:
        body = json.loads(await request.body())
        tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"])
        return JSONResponse({"count": len(tokens), "max_model_len": 512, "tokens": tokens, "token_strs": None})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


@contextmanager
def teacher_server(folder: str) -> Iterator[TeacherServer]:
    server = TeacherServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
