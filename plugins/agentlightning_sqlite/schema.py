"""The file: its tables, its version, and how a connection to it is made.

`added` and `changed` are drawn from one sequence, the store's order: max(changed) is the newest number, and rows are never deleted.
Values are bytes of `agentlightning.stores.serialization`; columns beside them are what is searched or changed.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from agentlightning.errors import StoreError, StoreVersionError

APPLICATION = 0x41474C73
"""`PRAGMA application_id` of our files: "AGLs"."""
VERSION = 1
"""`PRAGMA user_version`: of the tables below."""
BUSY = 30.0
"""Seconds to wait for other processes before giving up."""

TABLES = """
CREATE TABLE rollouts (
    added INTEGER PRIMARY KEY,         -- sequence number of `add`
    id TEXT NOT NULL UNIQUE,
    changed INTEGER NOT NULL UNIQUE,   -- sequence number of the last change of status
    status TEXT NOT NULL,
    mode TEXT NOT NULL,
    step INTEGER,
    grp TEXT,
    queueable INTEGER NOT NULL,        -- 0: made by `begin`
    max_attempts INTEGER NOT NULL,
    value BLOB NOT NULL                -- Rollout
);
CREATE INDEX rollouts_by_status ON rollouts (status, mode, added);
CREATE INDEX rollouts_by_step ON rollouts (step, added) WHERE step IS NOT NULL;
CREATE INDEX rollouts_by_group ON rollouts (grp, added) WHERE grp IS NOT NULL;
CREATE TABLE attempts (
    number_in_file INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    rollout INTEGER NOT NULL REFERENCES rollouts (added),
    number INTEGER NOT NULL,
    key TEXT NOT NULL UNIQUE,
    worker TEXT NOT NULL,
    status TEXT NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    error TEXT,
    expires REAL NOT NULL,             -- end of the lease, seconds since the epoch
    UNIQUE (rollout, number)
);
CREATE INDEX attempts_by_lease ON attempts (expires) WHERE status = 'running';
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    attempt INTEGER NOT NULL REFERENCES attempts (number_in_file),
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    base INTEGER REFERENCES records (seq),  -- the completion whose prompt and response come before the prompt in `value`
    value BLOB NOT NULL,                    -- Call, Completion, Span or Reward
    UNIQUE (id, kind)
);
CREATE INDEX records_by_attempt ON records (attempt, seq);
CREATE TABLE policies (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    value BLOB NOT NULL,               -- Policy
    PRIMARY KEY (name, version)
) WITHOUT ROWID;
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for other writers and commits durably. Any one thread at a time may use it."""
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def prepare(path: Path) -> None:
    """Make the file if there is none, and check that it is one of ours."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"the folder of the store {path} cannot be made: {error.strerror or error}") from error
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path)
        if not _ours(connection, path):
            _wal(connection, path)
            connection.execute("BEGIN IMMEDIATE")
            if not _ours(connection, path):  # another process may have been first
                for statement in TABLES.split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise translated(error, path) from error
    finally:
        if connection is not None:
            connection.close()


def _ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is a store of this version; False when it is empty."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION:
        if version != VERSION:
            way_out = "upgrade agentlightning" if version > VERSION else "read it with the version of agentlightning that made it"
            raise StoreVersionError(
                f"the store {path} has version {version}, this agentlightning reads version {VERSION}; {way_out}, or name another file"
            )
        return True
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables:
        raise StoreError(f"{path} is an SQLite database, but not of agentlightning; name another file for the store")
    return False


def _wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to write-ahead logging. SQLite does not wait for others here, so this does."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise StoreError(f"the store {path} cannot use write-ahead logging (it says {mode!r}); put it on a local disk")


def translated(error: sqlite3.Error, path: Path) -> StoreError:
    """SQLite's error as ours, with the file and the way out."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        way_out = "the disk is full; free some space and go on"
    elif name.startswith("SQLITE_NOTADB"):
        way_out = "it is no SQLite database; name another file for the store"
    elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        way_out = "check that its folder exists and that file and folder may be written by this user"
    elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        way_out = f"another process has held it for over {BUSY:.0f} seconds; is one stopped in the middle of a write?"
    elif name.startswith("SQLITE_CORRUPT"):
        way_out = "the file is damaged; `sqlite3 FILE .recover` saves what can be read"
    elif name.startswith("SQLITE_IOERR"):
        way_out = "the disk failed or is full; check it and its quota"
    else:
        way_out = "this should not happen; please report it"
    return StoreError(f"the store {path}: {error} ({name or type(error).__name__}); {way_out}")
