"""Registers the PostgreSQL store. It imports psycopg only when an address names it."""

from agentlightning.contracts.hookspecs import Register, hookimpl

NEEDS = ("psycopg", "psycopg_pool")


@hookimpl
def register_stores(register: Register) -> None:
    target, summary = "agentlightning_postgres.store:open_postgres", "a database for several machines: `postgresql://user@host/database`"
    register("postgresql", target, extra="postgres", needs=NEEDS, summary=summary)
    register("postgres", target, extra="postgres", needs=NEEDS, summary="the same under its short name")


@hookimpl
def register_checks(register: Register) -> None:
    register("postgres", "agentlightning_postgres.check:check", extra="postgres", needs=NEEDS, summary="writes and reads a rollout")
