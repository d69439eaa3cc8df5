"""Opens the store that an address names."""

from __future__ import annotations

from pathlib import Path

from agentlightning.contracts.store import LightningStore
from agentlightning.registry.registry import registry


def open_store(address: str) -> LightningStore:
    """The store at `scheme:rest`; a path (no colon; or one that starts with `.`, `/` or `~`; or a file that exists) is a SQLite file.
    `ConfigError` for a scheme that nothing registered."""
    scheme, colon, _ = address.partition(":")
    is_path = not colon or address.startswith((".", "/", "~")) or Path(address).is_file()
    if is_path and scheme not in registry().names("stores"):
        scheme = "sqlite"
    return registry().load("stores", scheme)(address)
