"""`python many_runners.py COUNT STORE GATEWAY`: `agl runner` in many processes. They are forked from one, and share its memory."""

from __future__ import annotations

import asyncio
import os
import sys

import openai  # noqa: F401  # the agent's, imported once

from agentlightning.runner.remote import RemoteRunner, run_remote


def main() -> None:
    count, store, gateway = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    arguments = RemoteRunner(store=store, agent="fault_agent:solve", gateway=gateway, concurrency=1)
    for _ in range(count):
        pid = os.fork()
        if not pid:
            asyncio.run(run_remote(arguments, lambda *_: None))
        print("runner", pid, flush=True)
    for _ in range(count):
        os.wait()


main()
