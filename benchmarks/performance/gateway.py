"""Measures the gateway: requests per second, CPU time of a request, and the time that it adds, against a pass that only keeps bytes.

    python benchmarks/performance/gateway.py [--requests 400] [--repeats 3]

A scripted engine answers at once (2000 prompt ids, 100 new ids in 13 chunks), so only the gateway's own work counts: authentication,
matching, rendering, detokenising, recording in a memory store, and the answer. The byte-keeping pass is a handler under the same server, in
the same run, that keeps the bytes of each request and returns the bytes of an answer. The client of both is a separate process. In
`continued`, each request continues a conversation whose first 1900 tokens are known, as agents do.

Other work on the machine changes rates more than CPU time. So each figure is the best of the repeats, and gateway and pass take turns.
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
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Figures:
    """Of one kind of request."""

    rate: float
    """Requests per second."""
    latency: float
    """Median, in milliseconds."""
    cpu: float
    """Milliseconds of the server's CPU time for a request."""

    @classmethod
    def best(cls, repeats: list[Figures]) -> Figures:
        """The best of each figure."""
        return cls(max(r.rate for r in repeats), min(r.latency for r in repeats), min(r.cpu for r in repeats))


async def ask(host: str, port: int, path: str, body: str, keys: list[str], at_once: int) -> tuple[float, float, str]:
    """Send the body with each key. Return requests per second, median latency in milliseconds, and the last answer."""
    todo, latencies, answer, data = iter(keys), list[float](), b"", body.encode()

    async def worker() -> None:
        nonlocal answer
        reader, writer = await asyncio.open_connection(host, port)  # a client library would cost more than the gateway
        for key in todo:
            headers = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n"
            started = time.perf_counter()
            writer.write(headers.encode() + data)
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            latencies.append(time.perf_counter() - started)
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"The gateway refused a request: {answer.decode()}")
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return len(keys) / (time.perf_counter() - started), statistics.median(latencies) * 1000, answer.decode()


async def measure(url: str, body: dict[str, Any], keys: list[str], at_once: int) -> tuple[Figures, str]:
    """Run `ask` in its own process, so that the client's work does not slow the gateway. Also return the last answer."""
    host, _, rest = url.removeprefix("http://").partition(":")
    port, _, path = rest.partition("/")
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--client", stdin=PIPE, stdout=PIPE)
    started = time.process_time()
    told, _ = await process.communicate(json.dumps([host, int(port), "/" + path, json.dumps(body), keys, at_once]).encode())
    cpu = (time.process_time() - started) / len(keys) * 1000
    if process.returncode:
        raise SystemExit("The client failed. See its error above.")
    rate, latency, answer = json.loads(told)
    return Figures(rate, latency, cpu), answer


class KeepsBytes:
    """The least that a recording server does: it keeps the bytes of a request, and answers with bytes."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.answer = b""

    async def __call__(self, request: Request) -> Response:
        self.kept.append(await request.body())
        return Response(self.answer, media_type="application/json")


async def main(requests: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reply_ids = make_tokenizer(folder).encode("x" * (NEW - 1))
        store, engine, keeps = open_store("memory:"), ScriptedEngine(folder, [reply_ids] * 10**6, chunk=8), KeepsBytes()
        gateway = Gateway(store, engine, extra_routes=[Route("/floor", keeps.__call__, methods=["POST"])])
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

        async def compared(asked: dict[str, Any], at_once: int) -> tuple[Figures, Figures]:
            """Figures of the gateway and of the byte-keeping pass."""
            ours, floor = list[Figures](), list[Figures]()
            for _ in range(repeats):
                owners = await keys(requests)
                if asked is follow:
                    await measure(url, first, owners, 16)
                floor.append((await measure(floor_url, asked, owners, at_once))[0])
                ours.append((await measure(url, asked, owners, at_once))[0])
            return Figures.best(ours), Figures.best(floor)

        _, answer = await measure(url, fresh, await keys(20), 4)
        keeps.answer = answer.encode()
        usage = json.loads(answer)["usage"]
        table = Table("request", "at once", "req/s", "of the pass", "CPU ms", "of the pass", "median ms", "added ms")
        for name, asked in (("fresh", fresh), ("continued", follow)):
            for at_once in (1, 16):
                ours, floor = await compared(asked, at_once)
                rates = [f"{ours.rate:.0f}", f"{ours.rate / floor.rate:.2f} of {floor.rate:.0f}"]
                times = [f"{ours.cpu:.2f}", f"{ours.cpu / floor.cpu:.1f} × {floor.cpu:.2f}"]
                table.add_row(name, str(at_once), *rates, *times, f"{ours.latency:.2f}", f"{ours.latency - floor.latency:.2f}")
        await gateway.stop()
        console = Console(width=120)
        console.print(table)
        sizes = f"prompt {usage['prompt_tokens']} ids, reply {usage['completion_tokens']} ids"
        console.print(f"{sizes}, {requests} requests, best of {repeats}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        print(json.dumps(asyncio.run(ask(*json.load(sys.stdin)))))
    else:
        asyncio.run(main(options.requests, options.repeats))
