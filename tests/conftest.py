"""For all tests."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import certifi
import pytest
import uvicorn.server
from hypothesis import settings

# A loaded machine is slow now and then; what is tested is what comes out.
settings.register_profile("agentlightning", deadline=None)
settings.load_profile("agentlightning")


@pytest.fixture(scope="session", autouse=True)
def one_certificate() -> Iterator[None]:
    """httpx reads all certificates for each client, 40 ms of CPU, and nothing here speaks TLS. One certificate is read in no time."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "one.pem"
        file.write_text(first + end)
        patch.setitem(os.environ, "SSL_CERT_FILE", str(file))  # processes that tests start have it too
        yield


class Hasty(ModuleType):
    """`asyncio` with short sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


@pytest.fixture(scope="session", autouse=True)
def hasty_servers() -> Iterator[None]:
    """uvicorn looks ten times a second whether it should stop, and then waits another tenth. The tests stop a thousand servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", Hasty("asyncio"))
        yield


@pytest.fixture(autouse=True)
def fresh_connections() -> Iterator[None]:
    """langchain-openai keeps one client for each address, for the life of the process. A later test's gateway may be given the same port,
    and would meet connections of a loop that is closed ("Event loop is closed")."""
    yield
    clients = sys.modules.get("langchain_openai.chat_models._client_utils")
    if clients is not None:
        clients._cached_async_httpx_client.cache_clear()
