"""One PostgreSQL server for each test process, and a schema of its own for each test."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
from postgres_schemas import NUMBERS

from agentlightning_postgres.store import PostgresStore, open_postgres
from agentlightning_postgres.testing import Server, binaries, temporary_server


def install() -> None:
    """Install the package where that is possible, or skip."""
    if binaries() is None and os.getuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "postgresql"]):
            subprocess.run(command, env=environment, capture_output=True, timeout=200)
    if binaries() is None:
        pytest.skip("These tests need PostgreSQL. Run: apt-get install -y postgresql (or put its initdb on PATH).")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    install()
    with temporary_server(in_memory=True) as running:
        yield running


@pytest.fixture
def address(server: Server) -> str:
    """The address of a new store."""
    return server.local(f"test_{next(NUMBERS)}")


@pytest.fixture
async def store(address: str) -> AsyncIterator[PostgresStore]:
    store = open_postgres(address)
    yield store
    await store.close()
