from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import agents
import pytest
from agents.models import _openai_shared
from agents.tracing import get_trace_provider
from agents_world import reply

import agentlightning_openai_agents
from agentlightning_openai_agents.adapter import installation


@pytest.fixture
def script() -> Any:
    """What the model says; a test overrides it."""
    return reply


@pytest.fixture(params=["responses", "chat_completions"])
def api(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of the two APIs the SDK speaks."""
    agents.set_default_openai_api(request.param)
    yield request.param
    agents.set_default_openai_api("responses")


@pytest.fixture
def installed() -> None:
    agentlightning_openai_agents.install()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of one test is left in the SDK for the next, and no key of the one who runs them is used."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_DEFAULT_MODEL", "OPENAI_AGENTS_DISABLE_TRACING"):
        monkeypatch.delenv(name, raising=False)
    installation().complained.clear()
    provider: Any = get_trace_provider()
    provider.set_processors([])  # not even the traces of a test go to OpenAI
    yield
    agentlightning_openai_agents.uninstall()
    provider.set_processors([])
    provider._manual_disabled = provider._env_disabled = None
    _openai_shared._default_openai_client = None
