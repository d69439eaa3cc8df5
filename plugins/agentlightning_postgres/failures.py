"""PostgreSQL's errors: which of them pass by themselves, and what to do about the others."""

from __future__ import annotations

import psycopg

from agentlightning.errors import StoreError, StoreUnavailable

PASSING = frozenset({"40001", "40P01", "53300", "57P01", "57P02", "57P03", "57P05", "25P03", "55P03"})
"""Errors of a transaction that had no effect: conflicts, a server that stops or starts, too many connections, a lost session."""

ADVICE = {
    ("28",): "Check the user, and give the password in PGPASSWORD or ~/.pgpass.",
    ("3D",): "Create the database with `createdb`, or name another one.",
    ("42501",): "Ask the database's owner for GRANT CREATE, USAGE, SELECT, INSERT and UPDATE on it.",
    ("53100",): "The server's disk is full: free some space there and try again.",
    ("53", "54"): "The server has no room: raise max_connections or its memory, or run fewer processes.",
    ("25006",): "The server is a read-only replica: name the primary.",
    ("57014",): "A timeout of the server cancelled it: raise statement_timeout for this user.",
    ("58", "XX"): "The server's disk or files failed: read its log.",
    ("42P01", "3F000"): "Its tables are gone: open the store again to create them.",
}
"""Fixes, by the start of an SQLSTATE."""
CONNECT = "Check that PostgreSQL runs at that address and that you may connect: `psql` takes the same address."


def passes(error: BaseException, connection: psycopg.AsyncConnection | None) -> bool:
    """Whether a repetition may succeed: the connection was lost, or the transaction lost a conflict."""
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    sqlstate = error.sqlstate or ""
    return sqlstate in PASSING or sqlstate.startswith("08") or connection is None or connection.closed


def translated(error: psycopg.Error, name: object) -> StoreError:
    """Convert psycopg's error to a `StoreError` that names the store and the fix."""
    code = error.sqlstate
    text = str(error)
    if code is None and "password" in text:
        advice = "Check the user, and give the password in PGPASSWORD or ~/.pgpass."
    elif code is None and "does not exist" in text:
        advice = "Create the database with `createdb`, or name another user or database."
    elif code is None:
        advice = CONNECT
    else:
        advice = next((advice for codes, advice in ADVICE.items() if code.startswith(codes)), "Please report this error.")
    reason = " ".join(text.split())
    kind = StoreUnavailable if code == "53100" else StoreError
    return kind(f"The store {name} failed: {reason} ({code or type(error).__name__}). {advice}")
