"""Calls to a gateway bypass proxies: a proxy cannot reach this machine's loopback, and must not see a rollout's key."""

from __future__ import annotations

import logging
import os
from urllib.request import getproxies

LOOPBACK = ("127.0.0.1", "localhost")

log = logging.getLogger("agentlightning.runner.proxies")


def without_proxy(*hosts: str | None) -> dict[str, str]:
    """`NO_PROXY` in both spellings: the environment's hosts and these."""
    direct = _direct()
    if direct != "*":
        present = direct.split(",") if direct else []
        direct = ",".join([*present, *(host for host in hosts if host and host not in present)])
    return {"NO_PROXY": direct, "no_proxy": direct}


def reach_loopback() -> None:
    """If this process has a proxy, let new HTTP clients reach this machine directly, and warn."""
    wanted = without_proxy(*LOOPBACK)
    if getproxies().keys() - {"no"} and wanted["no_proxy"] != _direct():
        os.environ.update(wanted)
        log.warning(
            "This process has an HTTP proxy that cannot reach the gateway, so NO_PROXY is now %s. Clients created at import time still "
            "use the proxy. If your agent has one, set NO_PROXY before you start the program.",
            wanted["NO_PROXY"],
        )


def _direct() -> str:
    """The current value: lower case comes first, as in `urllib`."""
    return os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
