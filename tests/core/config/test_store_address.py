"""Addresses of stores in settings: files become absolute, each run has a store of its own, and no secret is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentlightning.config.store_address import absolute_store, check_no_secret, run_store, shown_address
from agentlightning.errors import ConfigError


def test_only_files_become_absolute() -> None:
    assert absolute_store("agl.db", Path("/base")) == absolute_store("sqlite:agl.db", Path("/base")) == "sqlite:/base/agl.db"
    for address in ("postgresql://host/db", "http://host:1", "memory:"):
        assert absolute_store(address, Path("/base")) == address


def test_the_folder_of_a_run_means_its_store_also_in_a_database(tmp_path: Path) -> None:
    assert absolute_store(".", tmp_path) == f"sqlite:{tmp_path / 'store.db'}"
    (tmp_path / "config.toml").write_text('store = "postgresql://agl@host/agl?schema=run"\n')
    assert absolute_store(str(tmp_path), Path("/base")) == "postgresql://agl@host/agl?schema=run"


def test_a_run_has_a_schema_of_its_own_unless_the_address_names_one() -> None:
    assert run_store("postgresql://host/db", "20261129-demo") == "postgresql://host/db?schema=20261129-demo"
    assert run_store("postgres:///db?host=/tmp", "r" * 80) == f"postgres:///db?host=/tmp&schema={'r' * 63}"
    other = "postgresql://host/db?schema=20261129-120000-demo"  # in a copy of the config of another run
    assert run_store(other, "20261130-090000-demo") == "postgresql://host/db?schema=20261130-090000-demo"
    assert run_store(f"{other}&sslmode=require", "r") == "postgresql://host/db?sslmode=require&schema=r"
    assert run_store("postgres:///db?host=/tmp&schema=20261129-120000-x", "r") == "postgres:///db?host=/tmp&schema=r"
    for address in ("postgresql://host/db?schema=mine", "sqlite:/a.db", "http://host:1"):
        assert run_store(address, "run") == address


@pytest.mark.parametrize(
    "address",
    [
        "http://token@host:1", "postgresql://me:secret@host/db", "postgres://me:sec/ret@host/db", "postgresql://host/db?password=secret",
        "postgresql:///db?user=me&sslpassword=secret",
    ],
)  # fmt: skip
def test_a_secret_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError, match=r"store has a (token|password) in it, .*Remove it and set") as raised:
        check_no_secret("store", address)
    assert "sec" not in str(raised.value)
    assert "sec" not in shown_address(address)
    assert "token" not in shown_address(address)


@pytest.mark.parametrize(
    "address", ["http://host:1", "postgresql://me@host:5432/db", "postgresql://[::1]:5432/db", "postgresql:///db", "a:b@c.db"]
)
def test_an_address_without_a_secret_is_kept(address: str) -> None:
    check_no_secret("store", address)
