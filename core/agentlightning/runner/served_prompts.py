"""The prompts that a gateway serves, for an agent outside a run."""

from __future__ import annotations

import logging
from typing import Any, cast

import httpx

log = logging.getLogger("agentlightning.runner")
PATH = "/prompts"
"""Below a gateway's `/v1`."""


async def fetch_prompts(base_url: str, key: str) -> dict[str, str]:
    """Return the texts by name; empty: the gateway serves none. One that cannot be read is a warning, and the agent keeps its own."""
    try:
        async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
            answer = await client.get(f"{base_url}{PATH}", headers={"Authorization": f"Bearer {key}"})
            if answer.status_code in (404, 405):  # another server
                return {}
            answer.raise_for_status()
            return {str(name): str(text) for name, text in cast("dict[str, Any]", answer.json()).items()}
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        log.warning("The prompts of %s cannot be read, so the agent uses its own: %s: %s", base_url, type(error).__name__, error)
        return {}
