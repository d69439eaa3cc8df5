"""The self-test of the PostgreSQL store for `agl doctor`."""

from __future__ import annotations

import asyncio
import os
from contextlib import closing

import psycopg
from psycopg import sql

from agentlightning.stores.common import try_out
from agentlightning.types import new_id
from agentlightning_postgres.address import Address
from agentlightning_postgres.store import PostgresStore
from agentlightning_postgres.testing import binaries, temporary_server

SCHEMES = ("postgresql://", "postgres://")


def check() -> str:
    """Write a rollout to the server of AGL_STORE, claim it, and read it with another connection, in a schema that is dropped afterwards.
    Without AGL_STORE, use a server in a temporary folder, if PostgreSQL is installed here."""
    address = os.environ.get("AGL_STORE", "")
    if address.startswith(SCHEMES):
        return _try(address)
    if binaries() is None:
        return f"psycopg {psycopg.__version__} is installed. To test a server, set AGL_STORE=postgresql://user@host/database"
    with temporary_server(in_memory=True) as server:
        return _try(server.local().partition("&schema=")[0])


def _try(address: str) -> str:
    scratch = Address.parse(f"{address}{'&' if '?' in address else '?'}schema=agl_doctor_{new_id()}")
    try:
        asyncio.run(try_out(PostgresStore(scratch), PostgresStore(scratch)))
        with closing(psycopg.connect(scratch.conninfo)) as connection:
            version = connection.info.parameter_status("server_version") or "of an unknown version"
    finally:
        with closing(psycopg.connect(scratch.conninfo, autocommit=True)) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(scratch.schema)))
    return f"wrote, claimed and read a rollout; PostgreSQL {version}"
