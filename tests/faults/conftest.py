"""Each fault test gives its row of the table; `make test-faults` prints it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_account import table
from fault_house import House

from agentlightning_torch.testing import tiny_model

FULL = "AGL_TEST_FAULTS" in os.environ
"""Whether the faults happen often, as in `make test-faults`. Otherwise each test takes some seconds."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny").path


@pytest.fixture(scope="session")
def full() -> bool:
    return FULL


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    started = House(tmp_path)
    yield started
    started.close()


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[dict[str, object]], None]:
    return lambda row: record_property("fault", row)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows = [value for passed in terminalreporter.stats.get("passed", []) for name, value in passed.user_properties if name == "fault"]
    if FULL and rows:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line(table(rows))
