from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from autogen_world import planned

import agentlightning_autogen


@pytest.fixture
def script() -> Any:
    """What the model says; a test overrides it."""
    return planned


@pytest.fixture
def installed() -> None:
    agentlightning_autogen.install(models=["gpt-4o-mini"])


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    agentlightning_autogen.uninstall()
