"""Registers the SQLite store."""

from agentlightning.hookspecs import Register, hookimpl


@hookimpl
def register_stores(register: Register) -> None:
    register("sqlite", "agentlightning_sqlite.store:open_sqlite", summary="one file, several processes: `sqlite:path`, or a plain path")
