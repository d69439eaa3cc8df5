"""The end of an attempt ends its calls in the gateway, such as streams that the agent left early."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlsplit

from agentlightning.types import LLM

log = logging.getLogger("agentlightning.capture")
LONGEST = 15.0
"""Seconds to wait for the gateway."""


async def end_calls(llm: LLM) -> None:
    """Ask the gateway of an attempt to cancel the calls that still run. Returns when it has recorded them, or when it does not answer."""
    address = urlsplit(llm.base_url)
    if address.hostname is None:
        return
    secure = address.scheme == "https"
    headers = f"Host: {address.netloc}\r\nAuthorization: Bearer {llm.api_key}\r\nConnection: close"
    try:
        async with asyncio.timeout(LONGEST):
            reader, writer = await asyncio.open_connection(address.hostname, address.port or (443 if secure else 80), ssl=secure or None)
            try:
                writer.write(f"DELETE {address.path}/calls HTTP/1.1\r\n{headers}\r\n\r\n".encode())
                await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        log.debug("The gateway %s did not end the calls of an attempt: %s.", llm.base_url, error)
