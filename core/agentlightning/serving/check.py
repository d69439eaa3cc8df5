"""Tests the gateway, for `agl doctor`."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httpx

from agentlightning.contracts.engine import Engine, EngineInfo
from agentlightning.gateway.server import Gateway
from agentlightning.stores.common import open_store
from agentlightning.types import Policy


class _Nothing:
    """An engine that is never asked."""

    info = EngineInfo("nothing", "", 1)
    policy = Policy(version=0, base="nothing", uri="memory:nothing")


def check() -> str:
    """Start the gateway on the loopback, and ask it how it is."""

    async def tried() -> str:
        gateway = Gateway(open_store("memory:"), cast(Engine, _Nothing()))
        await gateway.start()
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                answer: Any = (await client.get(gateway.base_url.removesuffix("/v1") + "/healthz")).json()
                refused = (await client.post(f"{gateway.base_url}/chat/completions", json={})).status_code
        finally:
            await gateway.stop()
        if answer.get("status") != "ok" or refused != 401:
            raise RuntimeError(f"it answered {answer}, and a call without a key with {refused} (expected 401)")
        return "it listens on the loopback, answers, and refuses a call without a key"

    return asyncio.run(tried())
