"""Numbered migrations: each brings the tables of one version to the next, in one transaction.

A process that dies in a migration leaves the version before it, and the next `open` starts that migration again. When you change
`schema.TABLES`, raise `schema.VERSION` and add the statements for existing files here. A test compares the two ways to the newest tables.
"""

from __future__ import annotations

import sqlite3

MIGRATIONS: dict[int, str] = {
    3: """
CREATE INDEX records_by_base ON records (base) WHERE base IS NOT NULL;
CREATE INDEX attempts_lost ON attempts (rollout) WHERE status = 'lost';
CREATE TABLE sequence (newest INTEGER NOT NULL);
INSERT INTO sequence VALUES (0);
CREATE TABLE claims (
    attempt INTEGER PRIMARY KEY REFERENCES attempts (number_in_file),  -- a running one
    request TEXT NOT NULL                                              -- the name of the call that started it
);
CREATE INDEX claims_by_request ON claims (request);
""",
}
"""SQL statements by the version that they make. The versions have no gap."""
OLDEST = min(MIGRATIONS) - 1
"""The oldest version that can be migrated."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a store of an older version to the newest one. Several processes may do this at once."""
    for version in sorted(MIGRATIONS):
        if _version(connection) >= version:
            continue
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) < version:  # another process may have been first
            run_script(connection, MIGRATIONS[version])
            connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")


def run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run SQL statements in the open transaction. (`sqlite3.executescript` would commit it.) Each ends with a semicolon at the end of a
    line; none has one inside."""
    for statement in script.split(";\n"):
        connection.execute(statement)


def _version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]
