"""The tables, their migrations, and how a session is set up.

`added` and `changed` share one sequence, the order of the store. Its newest number is `store.seq`. A transaction that changes a status
takes its numbers by updating that row, and keeps the row's lock until its commit is visible. So numbers become visible in their order, and
a reader with a cursor misses none. A PostgreSQL sequence would not do: a later number can be committed before an earlier one.

Lock order: rollouts by `added`, their attempts, then the row of `store`. `add` and `begin` lock `store` alone.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import Query

from agentlightning.errors import StoreError, StoreVersionError
from agentlightning_postgres.address import Address
from agentlightning_postgres.failures import translated

OLDEST = 13
"""The oldest major version of PostgreSQL that the tests have a reason to believe in."""
LOCK = 0x41474C73
"""Key of the advisory lock around migrations: "AGLs"."""

MIGRATIONS = (
    """
CREATE TABLE store (seq bigint NOT NULL) WITH (fillfactor = 10);  -- one row: the newest sequence number
INSERT INTO store VALUES (0);
CREATE TABLE rollouts (
    added bigint PRIMARY KEY,          -- sequence number of `add`
    id text COLLATE "C" NOT NULL UNIQUE,
    changed bigint NOT NULL,           -- sequence number of the last change of status
    status text NOT NULL,
    mode text NOT NULL,
    step bigint,
    grp text COLLATE "C",
    queueable boolean NOT NULL,        -- false: made by `begin`
    max_attempts bigint NOT NULL,
    attempts bigint NOT NULL,          -- their number so far
    value bytea NOT NULL               -- Rollout
);
CREATE INDEX rollouts_by_change ON rollouts (changed);
CREATE INDEX rollouts_by_status ON rollouts (status, added);
CREATE INDEX rollouts_queued_by_mode ON rollouts (mode, added) WHERE status = 'queued';
CREATE INDEX rollouts_by_step ON rollouts (step, added) WHERE step IS NOT NULL;
CREATE INDEX rollouts_by_group ON rollouts (grp, added) WHERE grp IS NOT NULL;
CREATE TABLE attempts (
    place bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    rollout bigint NOT NULL REFERENCES rollouts (added),
    number bigint NOT NULL,
    key text COLLATE "C" NOT NULL UNIQUE,
    worker text NOT NULL,
    status text NOT NULL,
    started double precision NOT NULL, -- seconds since the epoch, on the server's clock
    finished double precision,
    error text,
    expires double precision NOT NULL, -- end of the lease
    UNIQUE (rollout, number)
);
CREATE INDEX attempts_by_lease ON attempts (expires) WHERE status = 'running';
CREATE INDEX attempts_lost ON attempts (rollout) WHERE status = 'lost';
CREATE TABLE records (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    attempt bigint NOT NULL REFERENCES attempts (place),
    kind text NOT NULL,
    id text COLLATE "C" NOT NULL,
    base text COLLATE "C",             -- the completion whose prompt and response this one's prompt starts with
    prompt bytea,                      -- of a completion: its prompt_ids after those of `base`
    value bytea NOT NULL,              -- Call, Span, Reward, or Completion without its prompt
    UNIQUE (id, kind)
);
CREATE INDEX records_by_attempt ON records (attempt, seq);
CREATE TABLE policies (
    name text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    value bytea NOT NULL,              -- Policy
    PRIMARY KEY (name, version)
);
CREATE TABLE claims (
    attempt bigint PRIMARY KEY REFERENCES attempts (place) ON DELETE CASCADE,
    request text COLLATE "C" NOT NULL  -- the name of the call that started it
);
CREATE INDEX claims_by_request ON claims (request);
""",
)
"""Statements of each version, oldest first. Never edit one that was released; append the next."""
VERSION = len(MIGRATIONS)


def session(schema: str) -> Query:
    """The statement that sets up a session: where names are looked up, and promises that a server's settings must not weaken."""
    return sql.SQL(
        "SELECT set_config('search_path', {}, false), set_config('default_transaction_isolation', 'read committed', false),"
        " set_config('idle_in_transaction_session_timeout', '15s', false), set_config('client_min_messages', 'error', false),"
        " set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'"
        " ELSE current_setting('synchronous_commit') END, false)"
    ).format(quoted(schema))


def quoted(schema: str) -> sql.Literal:
    """A schema's name as an identifier, in a literal."""
    name = schema.replace('"', '""')
    return sql.Literal(f'"{name}"')


def prepare(address: Address) -> None:
    """Create or migrate the tables. Raises `StoreError` for a server that cannot be used, `StoreVersionError` for a newer store."""
    try:
        with psycopg.connect(address.conninfo, autocommit=True) as connection:
            connection.execute(session(address.schema))
            _check_server(connection, address)
            if _version(connection, address) == VERSION:
                return
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK, address.schema))
                _migrate(connection, _version(connection, address), address)
    except psycopg.Error as error:
        raise translated(error, address) from error


def _check_server(connection: psycopg.Connection[Any], address: Address) -> None:
    version, encoding = connection.info.server_version, connection.info.parameter_status("server_encoding")
    if version < OLDEST * 10000:
        raise StoreError(f"The store {address} runs PostgreSQL {version // 10000}. Upgrade the server to {OLDEST} or newer.")
    if encoding != "UTF8":
        raise StoreError(
            f"The database of the store {address} has the encoding {encoding}. Create one with "
            "`createdb --encoding UTF8 --template template0`."
        )


def _version(connection: psycopg.Connection[Any], address: Address) -> int:
    """Return the version of the tables, 0 without any. Raises for tables of something else and for newer ones."""
    tables = {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (address.schema,))}
    if "migrations" not in tables:
        if tables & {"store", "rollouts", "attempts", "records", "policies"}:
            raise StoreError(
                f"The schema {address.schema!r} of {address} has tables of something else. Add ?schema=NAME to the address, with another "
                "name."
            )
        return 0
    row = connection.execute("SELECT max(version) FROM migrations").fetchone()
    version: int = (row and row[0]) or 0
    if version > VERSION:
        raise StoreVersionError(
            f"The store {address} has version {version}, and this agentlightning reads version {VERSION}. Upgrade agentlightning, or name "
            "another database."
        )
    return version


def _migrate(connection: psycopg.Connection[Any], version: int, address: Address) -> None:
    """Apply the migrations after `version`, in the open transaction."""
    if version == 0:
        name = sql.Identifier(address.schema)
        if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (address.schema,)).fetchone() is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations (version bigint PRIMARY KEY, applied timestamptz NOT NULL DEFAULT statement_timestamp())"
        )
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        connection.execute(statements)  # type: ignore[arg-type]  # a text of this file
        connection.execute("INSERT INTO migrations (version) VALUES (%s)", (number,))
