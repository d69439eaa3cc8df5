"""Registers the SQLite store, in a file and in memory."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_stores(register: Register) -> None:
    register("sqlite", "agentlightning_sqlite.store:open_sqlite", summary="a file shared by processes: `sqlite:path` or a plain path")
    register("memory", "agentlightning_sqlite.store:open_memory", summary="in this process, lost when it ends: `memory:`")


@hookimpl
def register_checks(register: Register) -> None:
    register("sqlite", "agentlightning_sqlite.check:check", summary="writes and reads a rollout")
