"""What the tests of durable stores run in other processes: `python store_process.py <job> <address> <name>`.

Each line of output is an acknowledgement, written after the store gave it.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.common import open_store
from agentlightning.types import Completion, Rollout, Sampling, Span, Task


def say(*words: object) -> None:
    print(*words, flush=True)


async def write(store: LightningStore, name: str) -> None:
    """Claim, record a conversation, finish; for ever, by several workers at once."""

    async def work() -> None:
        while True:
            await store.add([rollout := Rollout(task=Task(name, {}), mode="train", max_attempts=99)])
            say("added", rollout.id)
            ((claimed, attempt),) = await store.claim(name, lease=600)
            say("claimed", claimed.id, attempt.id)
            last: Completion | None = None
            for turn in range(4):
                prompt = [1, 2, 3] if last is None else [*last.prompt_ids.tolist(), *last.response_ids.tolist(), turn]
                last = Completion(
                    call_id=f"c{turn}", attempt_id=attempt.id, prompt_ids=np.array(prompt), response_ids=np.array([7, turn]), logprobs=None,
                    versions=np.array([0, 0]), sampling=Sampling(), finish_reason="stop", continues=last.id if last else None,
                )  # fmt: skip
                await store.record([last, Span(attempt_id=attempt.id, kind="tool", name="t", attributes={"x": "y" * 2000})])
                say("recorded", attempt.id, last.id, len(prompt))
            await store.finish(attempt.id, "succeeded")
            say("finished", attempt.id)

    await asyncio.gather(*(work() for _ in range(4)))


async def drain(store: LightningStore, name: str) -> None:
    """When told to, claim until nothing is queued."""
    sys.stdin.readline()
    while claimed := await store.claim(name, lease=60, limit=2):
        for rollout, attempt in claimed:
            say("claimed", rollout.id, attempt.id)
            await store.record([Span(attempt_id=attempt.id, kind="tool", name="t")])
            await store.finish(attempt.id, "succeeded")


async def watch(store: LightningStore, name: str) -> None:
    """Print every new sequence number as soon as it is known."""
    seq = 0
    while True:
        say("seq", seq)
        seq = await store.wait(seq)


async def main() -> None:
    job, address, name = sys.argv[1:]
    store = open_store(address)
    say("ready")
    await {"write": write, "drain": drain, "watch": watch}[job](store, name)
    await store.close()


asyncio.run(main())
