"""The address of a store: `postgresql://user@host:port/database?schema=name`. Only `parameters` holds the password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from agentlightning.errors import StoreError

SCHEMA = "agentlightning"
"""The schema of the tables, unless the address names another one."""
CONNECTIONS = 4
"""Maximum connections of one open store, beside the one that listens."""
DEFAULTS = {
    "application_name": "agentlightning", "connect_timeout": 5, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
"""Parameters of connections, unless the address gives others: a dead server is noticed within 30 seconds."""


@dataclass(frozen=True)
class Address:
    """Where a store lies. Its text and its repr have no password."""

    name: str
    """The address without a password, for messages."""
    schema: str
    parameters: dict[str, Any] = field(repr=False)
    """libpq's parameters of a connection."""

    def __str__(self) -> str:
        return self.name

    @property
    def conninfo(self) -> str:
        """The connection string, with the password if the address has one. Never print it."""
        return make_conninfo(**self.parameters)

    @classmethod
    def parse(cls, address: str) -> Address:
        """Parse an address. libpq adds PGHOST, PGUSER, PGPASSWORD, ~/.pgpass and its other defaults. Raises `StoreError`."""
        uri, schema = _without_schema(address)
        try:
            parameters = conninfo_to_dict(uri)
        except psycopg.ProgrammingError:
            parameters = None  # libpq repeats a part of the address, which may be of the password
        if parameters is None or not uri.startswith(("postgresql://", "postgres://")) or _misread(parameters):
            raise StoreError(
                "The address of the PostgreSQL store is not valid. Write postgresql://user@host:5432/database, with %40 for @ "
                "and %2F for / in user and password."
            )
        if not schema or len(schema.encode()) > 63 or "\x00" in schema or schema.startswith("pg_"):
            raise StoreError(f"The schema {schema!r} of the PostgreSQL store cannot be used. Give a name of 1 to 63 bytes without pg_.")
        return cls(_name(parameters, schema), schema, DEFAULTS | parameters)


def _without_schema(address: str) -> tuple[str, str]:
    """Take the parameter `schema` out of an address, because libpq does not know it."""
    uri, mark, query = address.partition("?")
    pairs = query.split("&") if mark else []
    schemas = [unquote(pair.partition("=")[2]) for pair in pairs if pair.startswith("schema=")]
    rest = "&".join(pair for pair in pairs if not pair.startswith("schema="))
    return f"{uri}?{rest}" if rest else uri, schemas[-1] if schemas else SCHEMA


def _misread(parameters: dict[str, Any]) -> bool:
    """Whether a password with unescaped characters became a port or a part of the database's name."""
    return "@" in str(parameters.get("dbname", "")) or re.fullmatch(r"[\d,]*", str(parameters.get("port", ""))) is None


def _name(parameters: dict[str, Any], schema: str) -> str:
    user, host, port = (str(parameters.get(key, "")) for key in ("user", "host", "port"))
    name = "postgresql://" + (f"{quote(user, safe='')}@" if user else "") + (quote(host, safe=",[]:") if host else "")
    name += (f":{port}" if port else "") + "/" + quote(str(parameters.get("dbname", "")), safe="")
    return name if schema == SCHEMA else f"{name}?schema={quote(schema, safe='')}"


def has_password(address: str) -> bool:
    """Whether the text of an address holds a password."""
    return re.match(r"[a-z]+://[^/@]*:[^/@]+@|.*[?&]password=", address) is not None
