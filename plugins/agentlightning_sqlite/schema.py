"""The database: its tables, its version, and how to connect to it.

`added` and `changed` share one sequence, the order of the store. The newest number is max(changed), or `sequence.newest` after the newest
rollouts were deleted, because numbers never repeat. Values are bytes of `agentlightning.stores.serialization`. The other columns exist for
searching and updating.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from agentlightning.errors import StoreError, StoreUnavailable, StoreVersionError
from agentlightning_sqlite.migrations import OLDEST, migrate, run_script

APPLICATION = 0x41474C73
"""`PRAGMA application_id` of stores: "AGLs"."""
VERSION = 3
"""`PRAGMA user_version`, the version of the tables below. `migrations.py` brings older files to it."""
MEMORY = ":memory:"
"""SQLite's name of an in-memory database. Each connection has its own."""
LOG_PAGES = 4000
"""Pages of 4 KB in the log before SQLite copies them into the file."""
BUSY = 30.0
"""Seconds to wait for locks of other processes."""

ADVICE = {
    ("SQLITE_FULL",): "The disk is full: free some space and try again.",
    ("SQLITE_NOTADB",): "The file is not a SQLite database: name another file for the store.",
    ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"): (
        "Check that the folder exists, and that you may write the folder and the file."
    ),
    ("SQLITE_BUSY", "SQLITE_LOCKED"): (
        f"Another process has locked it for over {BUSY:.0f} seconds: look for one that stopped in the middle of a write."
    ),
    ("SQLITE_CORRUPT",): "The file is damaged: save the readable part with `sqlite3 FILE .recover`.",
    ("SQLITE_IOERR",): "The disk failed or is full: check the disk and your quota.",
}
"""Fixes for SQLite's errors, by the start of their names."""
PASSING = ("SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_IOERR")
"""Errors that somebody can mend while the store is open."""

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
CREATE INDEX attempts_lost ON attempts (rollout) WHERE status = 'lost';
CREATE TABLE claims (
    attempt INTEGER PRIMARY KEY REFERENCES attempts (number_in_file),  -- a running one
    request TEXT NOT NULL                                              -- the name of the call that started it
);
CREATE INDEX claims_by_request ON claims (request);
CREATE TABLE records (
    seq INTEGER PRIMARY KEY,
    attempt INTEGER NOT NULL REFERENCES attempts (number_in_file),
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    base INTEGER REFERENCES records (seq),  -- the completion whose prompt and response this one's prompt starts with
    prompt BLOB,                            -- of a completion: its prompt_ids after those of `base`
    value BLOB NOT NULL,                    -- Call, Span, Reward, or Completion without its prompt
    UNIQUE (id, kind)
);
CREATE INDEX records_by_attempt ON records (attempt, seq);
CREATE INDEX records_by_base ON records (base) WHERE base IS NOT NULL;
CREATE TABLE policies (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    value BLOB NOT NULL,               -- Policy
    PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE TABLE sequence (
    newest INTEGER NOT NULL            -- one row: the newest sequence number at the last deletion
);
INSERT INTO sequence VALUES (0);
"""


def connect(path: Path | str) -> sqlite3.Connection:
    """Open a connection that waits for other writers and commits durably. Use it in one thread at a time."""
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    return connection


def prepare(path: Path) -> None:
    """Create a missing file, and check that an existing one is a store."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"Cannot create the folder of the store {path}: {error.strerror or error}. Choose a path in a folder that you may write."
        ) from error
    connection: sqlite3.Connection | None = None
    try:
        connection = connect(path)
        if not _ours(connection, path):
            _wal(connection, path)
            connection.execute("BEGIN IMMEDIATE")
            if not _ours(connection, path):  # another process may have been first
                create_tables(connection)
            connection.execute("COMMIT")
        migrate(connection)
    except sqlite3.Error as error:
        raise translated(error, path) from error
    finally:
        if connection is not None:
            connection.close()


def create_tables(connection: sqlite3.Connection) -> None:
    """Fill an empty database, in the open transaction."""
    run_script(connection, TABLES)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def compact(path: Path) -> None:
    """Rewrite the file without the pages of deleted rows, and shorten its log. Needs the file's size again as free space meanwhile."""
    try:
        with closing(connect(path)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise translated(error, path) from error


def _ours(connection: sqlite3.Connection, path: Path) -> bool:
    """Return True if the file is a store of this version or an older one, and False if it is empty."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION:
        if not OLDEST <= version <= VERSION:
            readable = f"reads versions {OLDEST} to {VERSION}"
            advice = "Upgrade agentlightning" if version > VERSION else "Open it with the agentlightning that created it"
            raise StoreVersionError(
                f"The store {path} has version {version}, and this agentlightning {readable}. {advice}, or name another file."
            )
        return True
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables:
        raise StoreError(f"{path} is a SQLite database, but not an Agent Lightning store. Name another file for the store.")
    return False


def _wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to write-ahead logging. SQLite does not wait for locks here, so this function does."""
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
        raise StoreError(f"The store {path} cannot use write-ahead logging (journal mode {mode!r}). Put it on a local disk.")


def translated(error: sqlite3.Error, name: Path | str) -> StoreError:
    """Convert SQLite's error to a `StoreError` that names the store and the fix."""
    code = getattr(error, "sqlite_errorname", "")
    advice = next((advice for codes, advice in ADVICE.items() if code.startswith(codes)), "Please report this error.")
    kind = StoreUnavailable if code.startswith(PASSING) else StoreError
    return kind(f"The store {name} failed: {error} ({code or type(error).__name__}). {advice}")
