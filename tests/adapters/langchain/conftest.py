from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_world import reply

import agentlightning_langchain


@pytest.fixture
def script() -> Any:
    """What the model says; a test overrides it."""
    return reply


@pytest.fixture
def installed() -> None:
    agentlightning_langchain.install()


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    agentlightning_langchain.uninstall()
