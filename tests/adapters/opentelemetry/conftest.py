from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.util._once import Once

import agentlightning_opentelemetry
from agentlightning.testing.adapter_contract import reply
from agentlightning_opentelemetry import adapter


@pytest.fixture
def script() -> Any:
    """What the model says; a test overrides it."""
    return reply


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No provider of one test is left for the next."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    adapter._providers.cache_clear()
    adapter.recording().complained.clear()
    yield
    agentlightning_opentelemetry.uninstall()
    adapter._providers.cache_clear()
