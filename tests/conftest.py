"""For all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A loaded machine is slow now and then; what is tested is what comes out.
settings.register_profile("agentlightning", deadline=None)
settings.load_profile("agentlightning")


@pytest.fixture(autouse=True)
def fresh_connections() -> Iterator[None]:
    """langchain-openai keeps one client for each address, for the life of the process. A later test's gateway may be given the same port,
    and would meet connections of a loop that is closed ("Event loop is closed")."""
    yield
    clients = sys.modules.get("langchain_openai.chat_models._client_utils")
    if clients is not None:
        clients._cached_async_httpx_client.cache_clear()
