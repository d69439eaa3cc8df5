"""Addresses of stores in settings."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from urllib.parse import quote

from agentlightning.errors import ConfigError

POSTGRES = ("postgresql", "postgres")


def store_file(address: str) -> Path | None:
    """Return the file of a store's address (`sqlite:path`, or a plain path); None for other stores."""
    scheme, colon, rest = address.partition(":")
    if colon and scheme != "sqlite" and not address.startswith((".", "/", "~")):
        return None
    return Path(rest if colon and scheme == "sqlite" else address).expanduser()


def absolute_store(address: str, base: Path) -> str:
    """Return the same address, with the path of a store file made absolute. A folder is a run's, and means its store."""
    file = store_file(address)
    if file is None:
        return address
    path = base / file
    return folder_store(path) if path.is_dir() else f"sqlite:{path}"


def folder_store(run: Path) -> str:
    """Return the address of a run's store: the setting `store` of the run, or the file in its folder."""
    try:
        store: str | None = tomllib.loads((run / "config.toml").read_text()).get("store")
    except (OSError, ValueError):
        store = None
    return store or f"sqlite:{run / 'store.db'}"


def run_store(address: str, run: str) -> str:
    """Return the address of a run's own store: in a PostgreSQL database, the schema with the run's name unless the address has one. The
    schema of another run, from a copy of its config, is replaced."""
    if address.partition("://")[0] not in POSTGRES:
        return address
    address = re.sub(r"([?&])schema=\d{8}-\d{6}-[^&]*&?", r"\1", address).rstrip("?&")
    if re.search(r"[?&]schema=", address):
        return address
    return f"{address}{'&' if '?' in address else '?'}schema={quote(run[:63], safe='')}"


def check_no_secret(setting: str, address: str) -> None:
    """Raise `ConfigError` for a token or a password in an address, because the run folder keeps its settings."""
    scheme, _, rest = address.partition("://")
    login = rest.partition("/")[0].rpartition("@")[0]
    if scheme in ("http", "https") and login:
        raise ConfigError(f"{setting} has a token in it, and the run folder keeps its settings. Remove it and set AGL_TOKEN instead.")
    if scheme in POSTGRES and (":" in rest.rpartition("@")[0] or re.search(r"[?&](ssl)?password=", rest)):
        raise ConfigError(
            f"{setting} has a password in it, and the run folder keeps its settings. Remove it and set PGPASSWORD, or write it to "
            "~/.pgpass."
        )


def shown_address(address: str) -> str:
    """Return an address without its login and passwords, for messages."""
    return re.sub(r"(?<=[?&])(ssl)?password=[^&]*", "password=...", re.sub(r"(?<=://).*@", "", address))
