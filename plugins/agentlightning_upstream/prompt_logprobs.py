"""Asks a server for the log-probabilities of given tokens, in the form of vLLM's OpenAI-compatible server.

`/v1/completions` takes token ids as its prompt and returns `prompt_logprobs`, one table for each token, with the token's own id among its
keys. `/tokenize` shows the server's tokenizer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx
import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.errors import EngineError, EngineUnavailable, UnsupportedSetting
from agentlightning.rl.batch.packs import leaf_rows
from agentlightning.types import Doubles
from agentlightning_upstream.connection import Connection

CONCURRENCY = 8
"""Requests in flight."""
ATTEMPTS = 5
"""Requests for one row, at most."""
FIRST_PAUSE = 0.5
"""Seconds before the second request; each later pause is twice as long."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the request is sent again."""
REFUSES_ALL = (401, 402, 403, 404, 405)
"""Statuses that no other request changes."""


async def score(connection: Connection, model: str, batch: Batch) -> Doubles:
    """(tokens,) log-probabilities of the sampled tokens at temperature 1; NaN on context. Each path of the forest is one request, and each
    sampled token counts in one of them."""
    temperatures = batch.temperature[batch.trained]
    if (temperatures != 1.0).any():
        raise UnsupportedSetting(
            f"Some tokens were sampled at temperature {temperatures[temperatures != 1.0][0]:g}, and the server of the teacher reports "
            "log-probabilities at temperature 1. Sample at 1.0, or serve the teacher with engine 'torch'."
        )
    logprobs, free = np.full(len(batch), np.nan), asyncio.Semaphore(CONCURRENCY)

    async def ask(index: Any, trained: Any) -> None:
        async with free:
            ids = batch.token_ids[index].tolist()
            logprobs[index[trained]] = (await _prompt_logprobs(connection, model, ids))[trained]

    try:
        async with asyncio.TaskGroup() as group:
            for row in leaf_rows(batch):
                group.create_task(ask(row.index, row.trained))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return logprobs


async def tokenize(connection: Connection, model: str, text: str) -> list[int]:
    """Return the server's ids of a text."""
    url = f"{connection.url.removesuffix('/v1')}/tokenize"
    answer = await post(connection, url, {"model": model, "prompt": text, "add_special_tokens": False})
    ids = answer.get("tokens")
    if not isinstance(ids, list):
        raise EngineError(f"The server {url} returned no tokens, so its tokenizer is unknown. Use a vLLM server as the teacher.")
    return cast("list[int]", ids)


async def _prompt_logprobs(connection: Connection, model: str, ids: list[int]) -> Doubles:
    """(tokens,) log-probabilities of the tokens of a row; NaN for the first."""
    url = f"{connection.url}/completions"
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
    answer = await post(connection, url, body)
    choices: Any = answer.get("choices") or [{}]
    entries: Any = choices[0].get("prompt_logprobs")
    if not isinstance(entries, list) or len(cast("list[Any]", entries)) != len(ids):
        raise EngineError(
            f"The server {url} returned no prompt_logprobs for {len(ids)} tokens, so it cannot be a teacher. Use a vLLM server, or engine "
            "'torch'."
        )
    try:
        return np.array([np.nan] + [entry[str(id)]["logprob"] for entry, id in zip(entries[1:], ids[1:], strict=True)], np.float64)
    except (KeyError, TypeError) as error:
        raise EngineError(
            f"The server {url} returned prompt_logprobs without the prompt's own tokens ({error}). Check its version."
        ) from error


async def post(connection: Connection, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request, again while the server is busy. Raises `EngineError`; `EngineUnavailable` if the server stays away, or would refuse
    any request."""
    for attempt in range(ATTEMPTS):
        try:
            response = await connection.post(url, body)
        except httpx.HTTPError as error:
            problem = f"The server {url} cannot be reached ({type(error).__name__}: {error})"
        else:
            if response.status_code == 200:
                return _object(response, url)
            text = connection.without_key(response.content).decode(errors="replace")[:300]
            problem = f"The server {url} answered {response.status_code}: {text}"
            if response.status_code in REFUSES_ALL:
                raise EngineUnavailable(f"{problem}. Check teacher.engine and teacher.model, then resume the run.")
            if response.status_code not in BUSY:
                raise EngineError(f"{problem}. Check teacher.engine and teacher.model.")
        if attempt < ATTEMPTS - 1:
            await asyncio.sleep(FIRST_PAUSE * 2**attempt)
    raise EngineUnavailable(f"{problem}, {ATTEMPTS} times. Check the server of the teacher, then resume the run.")  # pyright: ignore[reportPossiblyUnboundVariable]


def _object(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        answer: Any = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        kind = response.headers.get("content-type", "no type")
        raise EngineUnavailable(
            f"The server {url} answered with no JSON object ({kind}). Check the address of the teacher, then resume the run."
        )
    return cast("dict[str, Any]", answer)
