"""Measures the gateway's cost in requests per second and added latency, against a handler that returns the same bytes.

    python benchmarks/performance/gateway.py [--requests 400]

A scripted engine answers at once (2000 prompt ids, 100 new ids), so only the gateway's own work counts: authentication, matching,
rendering, detokenising, recording in a memory store, and the answer. The baseline is a Starlette app under the same server, in the same
run. The client of both is a separate process. In `continued`, each request continues a conversation whose first
1900 tokens are known, as agents do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Rollout, Sampling, Task

PROMPT, NEW = 2000, 100


async def ask(url: str, body: dict[str, Any], keys: list[str], at_once: int) -> tuple[float, float]:
    """Return requests per second and median latency in milliseconds, sending the body with each key."""
    todo = iter(keys)
    latencies: list[float] = []
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=32)) as client:

        async def worker() -> None:
            for key in todo:
                started = time.perf_counter()
                answer = await client.post(url, json=body, headers={"Authorization": f"Bearer {key}"})
                answer.raise_for_status()
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(at_once)))
    return len(keys) / (time.perf_counter() - started), statistics.median(latencies) * 1000


async def measure(*asked: Any) -> tuple[float, float]:
    """Run `ask` in its own process, so that the client's work does not slow the gateway."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--client", stdin=PIPE, stdout=PIPE)
    told, _ = await process.communicate(json.dumps(asked).encode())
    if process.returncode:
        raise SystemExit("The client failed. See its error above.")
    speed, latency = json.loads(told)
    return speed, latency


async def main(requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reply_ids = make_tokenizer(folder).encode("x" * (NEW - 1))
        store = open_store("memory:")
        engine = ScriptedEngine(folder, [reply_ids] * 10**6, chunk=8)
        canned = b"{}"

        async def floor(request: Request) -> Response:
            await request.body()
            return Response(canned, media_type="application/json")

        gateway = Gateway(store, engine, extra_routes=[Route("/floor", floor, methods=["POST"])])
        await gateway.start()
        url, floor_url = f"{gateway.base_url}/chat/completions", gateway.base_url.replace("/v1", "/floor")

        async def keys(count: int) -> list[str]:
            """Create one attempt per request, so that a call is the first or second of its attempt."""
            keys: list[str] = []
            for i in range(count):
                rollout = Rollout(task=Task(str(i), None), mode="train", sampling=Sampling(max_tokens=NEW))
                keys.append((await store.begin(rollout, "bench", lease=600)).key)
            return keys

        def body(*messages: dict[str, Any]) -> dict[str, Any]:
            return {"model": engine.info.model, "messages": list(messages)}

        frame = len("<|user|\n|\n|assistant\n") - 4 + 2  # template tokens around one user message
        fresh = body({"role": "user", "content": "a" * (PROMPT - frame)})
        first = body({"role": "user", "content": "a" * (PROMPT - 2 * frame - NEW - 10)})
        reply = {"role": "assistant", "content": "x" * (NEW - 1)}
        follow = body(*first["messages"], reply, {"role": "user", "content": "and now?"})

        table = Table("request", "at once", "gateway req/s", "floor req/s", "ratio", "gateway ms", "floor ms", "added ms")
        warm = await keys(20)
        await measure(url, fresh, warm, 4)
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(url, json=fresh, headers={"Authorization": f"Bearer {warm[0]}"})
        canned = answer.content
        usage = answer.json()["usage"]
        for name, asked in (("fresh", fresh), ("continued", follow)):
            for at_once in (1, 16):
                owners = await keys(requests)
                if asked is follow:
                    await measure(url, first, owners, 16)
                low = await measure(floor_url, asked, owners, at_once)
                high = await measure(url, asked, owners, at_once)
                speeds = [f"{high[0]:.0f}", f"{low[0]:.0f}", f"{high[0] / low[0]:.2f}"]
                table.add_row(name, str(at_once), *speeds, *(f"{ms:.2f}" for ms in (high[1], low[1], high[1] - low[1])))
        await gateway.stop()
        console = Console()
        console.print(table)
        console.print(f"prompt {usage['prompt_tokens']} ids, reply {usage['completion_tokens']} ids, {requests} requests each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(ask(*json.load(sys.stdin)))))
    else:
        asyncio.run(main(options.requests))
