"""HTTP requests to one vLLM server.

This module depends on the endpoints, never on vLLM's classes, which change between versions. `Interrupted` means that the server died, or
may have. The engine retries the request once it is back. Every other failure is an `EngineError`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import msgspec

from agentlightning.capture.http_patch import OWN_CLIENT
from agentlightning.contracts.engine import Chunk
from agentlightning.errors import ContextOverflow, EngineError
from agentlightning.types import FloatArray, IntArray, Sampling, floats, ints


class Interrupted(Exception):  # no error: the server restarts, and the engine retries the request
    """The server died, or may have died."""


class Wire:
    """The client of one server."""

    def __init__(self, url: str, key: str | None, silence: float) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(silence, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # a system proxy cannot reach our server
        )
        setattr(self._client, OWN_CLIENT, True)

    async def close(self) -> None:
        await self._client.aclose()

    async def healthy(self) -> bool:
        """Return True if the server answers and its engine is alive."""
        try:
            return (await self._client.get("/health", timeout=10.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def models(self) -> list[dict[str, Any]]:
        """Return the served models, as listed by the OpenAI API."""
        return (await self._ask("GET", "/v1/models"))["data"]

    async def complete(self, model: str, prompt_ids: IntArray, sampling: Sampling, limit: int, version: int) -> AsyncGenerator[Chunk]:
        """Sample up to `limit` tokens. Closing the generator aborts the request."""
        body = {
            "model": model,
            "prompt": prompt_ids.tolist(),
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": None if sampling.seed is None else sampling.seed % 2**63,
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,  # the gateway decides what ends a reply
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            "stream": True,
        }
        try:
            async with self._client.stream("POST", "/v1/completions", content=msgspec.json.encode(body), headers=_JSON) as response:
                if response.status_code != 200:
                    raise self._failure("/v1/completions", response.status_code, await response.aread())
                async for event in _events(response):
                    chunk = self._chunk(event, version)
                    if chunk is not None:
                        yield chunk
                        if chunk.finish is not None:
                            return
        except httpx.TransportError as error:
            raise Interrupted(f"{type(error).__name__}: {error}") from error
        raise Interrupted("the reply ended early")

    async def score(self, model: str, ids: IntArray) -> FloatArray:
        """Return each token's log-probability except the first's, given the previous tokens, at temperature 1; (tokens - 1,)."""
        body = {"model": model, "prompt": ids.tolist(), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        answer = await self._ask("POST", "/v1/completions", body)
        places: Sequence[dict[str, dict[str, float]] | None] = answer["choices"][0]["prompt_logprobs"]
        return floats(
            [place[str(token)]["logprob"] for place, token in zip(places[1:], ids[1:].tolist(), strict=True) if place is not None]
        )

    async def pause(self) -> None:
        """Let the server finish all in-flight requests, and hold new ones."""
        await self._ask("POST", "/pause", mode="wait")

    async def resume(self) -> None:
        await self._ask("POST", "/resume")

    async def reload(self, folder: str) -> None:
        """Load the weights of a folder."""
        await self._call("reload_weights", weights_path=folder)

    async def adapt(self, name: str, folder: str) -> None:
        """Load a folder's LoRA adapter in place of the one with this name.

        vLLM's own `load_inplace` would have every later step of the server read the folder again. vLLM 0.32 keeps the place of an unloaded
        adapter, so all adapters leave their places. The others return with their next requests.
        """
        if any(model["id"] == name for model in await self.models()):
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})
            for number in (await self._call("list_loras"))[0]:
                await self._call("remove_lora", lora_id=number)
        await self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})

    async def forget(self) -> None:
        """Drop the prefix cache."""
        await self._ask("POST", "/reset_prefix_cache")

    async def stamp(self, versions: str) -> None:
        """Set the versions that the server reports."""
        await self._ask("POST", "/update_weight_version", {"new_version": versions})

    async def stamped(self) -> str:
        """Return the versions from the last `stamp`."""
        return str((await self._ask("GET", "/weight_info"))["weight_version"])

    async def sleep(self) -> None:
        """Free the GPU by moving the weights to CPU memory."""
        await self._ask("POST", "/sleep", level="1")

    async def wake(self) -> None:
        await self._ask("POST", "/wake_up")

    async def _call(self, method: str, **arguments: Any) -> list[Any]:
        """Call a method of the server's workers, and return their results."""
        return (await self._ask("POST", "/collective_rpc", {"method": method, "kwargs": arguments}))["results"]

    async def _ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = await self._client.request(method, path, content=content, params=query, headers=_JSON if content else None)
        except httpx.TransportError as error:
            raise Interrupted(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise self._failure(path, response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content)
        except msgspec.DecodeError:
            return response.text  # a confirmation

    def _chunk(self, data: bytes, version: int) -> Chunk | None:
        """Return one event of a stream, or None if it has no tokens."""
        event = msgspec.json.decode(data)
        if "error" in event:
            raise self._refusal("/v1/completions", int(event["error"].get("code") or 500), event["error"])
        choice = next(iter(event["choices"]), None)
        if choice is None:
            return None
        ids, finish = choice["token_ids"] or [], choice["finish_reason"]
        if finish not in (None, "stop", "length"):
            raise Interrupted(f"the server ended the reply: {finish}")
        scores = (choice["logprobs"] or {}).get("token_logprobs") or []
        if len(scores) != len(ids):
            raise EngineError(
                f"vLLM at {self.url} sent {len(ids)} tokens with {len(scores)} log-probabilities. Expected one for each token."
            )
        return Chunk(ints(ids), floats(scores), version, finish) if ids or finish else None

    def _failure(self, path: str, status: int, content: bytes) -> Exception:
        try:
            error: Any = msgspec.json.decode(content)["error"]
        except (msgspec.DecodeError, TypeError, KeyError):
            error = content.decode(errors="replace")
        return self._refusal(path, status, error)

    def _refusal(self, path: str, status: int, error: Any) -> Exception:
        message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
        message = f"vLLM at {self.url} answered {path} with {status}: {message[:600]}"
        if isinstance(error, dict) and error.get("param") == "input_tokens":
            return ContextOverflow(message)
        if status == 404 and not path.startswith("/v1/"):
            return EngineError(f"{message}. Start it with VLLM_SERVER_DEV_MODE=1 in its environment.")
        if status in (401, 403):
            return EngineError(f"{message}. Name the environment variable of its key in engine.key_env.")
        if status >= 500 and path == "/v1/completions":
            return Interrupted(message)  # its engine may have died; the retry checks that first
        return EngineError(message)


async def _events(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Yield the JSON of each event in a stream. Only a line feed ends a line, because text may contain Unicode's other line separators."""
    left = b""
    async for part in response.aiter_bytes():
        *lines, left = (left + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield line[6:]


_JSON = {"content-type": "application/json"}
