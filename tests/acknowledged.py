"""Processes that write into a store, and what must be in it afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from agentlightning.contracts.store import LightningStore

SCRIPT = Path(__file__).with_name("store_process.py")


def start(job: str, address: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(SCRIPT), job, address, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


async def check_acknowledged(store: LightningStore, acknowledged: Mapping[str, list[list[str]]]) -> None:
    """Everything that the job `write` printed is in the store, once."""
    assert len(acknowledged["finished"]) > 20, "the writers did too little for this test to say anything"
    states, _ = await store.list(limit=100_000)
    attempts = {attempt.id: attempt for state in states for attempt in state.attempts}
    assert {id for (id,) in acknowledged["added"]} <= {state.rollout.id for state in states}
    claims = [attempt for _, attempt in acknowledged["claimed"]]
    assert len(claims) == len(set(claims))
    assert set(claims) <= attempts.keys()
    assert all(attempts[id].status == "succeeded" for (id,) in acknowledged["finished"])
    assert all(len(state.attempts) <= 1 for state in states)  # leases of 600 s: nothing is handed out again
    for attempt_id in {attempt for attempt, _, _ in acknowledged["recorded"]}:
        written = await store.records(attempt_id)
        sizes = {completion.id: len(completion.prompt_ids) for completion in written.completions}
        assert len(written.spans) == len(written.completions)  # all or none
        for completion, size in ((c, int(n)) for attempt, c, n in acknowledged["recorded"] if attempt == attempt_id):
            assert sizes[completion] == size
