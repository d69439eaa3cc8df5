"""Calls to a gateway go to it directly: a proxy cannot reach this machine's loopback, and must not see a rollout's key."""

from __future__ import annotations

import logging
import os
from urllib.request import getproxies

LOOPBACK = ("127.0.0.1", "localhost")

log = logging.getLogger("agentlightning.runner.proxies")


def without_proxy(*hosts: str | None) -> dict[str, str]:
    """`NO_PROXY` in both spellings: what the environment has there, and these hosts."""
    direct = _direct()
    if direct != "*":
        there = direct.split(",") if direct else []
        direct = ",".join([*there, *(host for host in hosts if host and host not in there)])
    return {"NO_PROXY": direct, "no_proxy": direct}


def reach_loopback() -> None:
    """Where this process has a proxy, let HTTP clients that are made from here on go to this machine directly, and say so."""
    wanted = without_proxy(*LOOPBACK)
    if getproxies().keys() - {"no"} and wanted["no_proxy"] != _direct():
        os.environ.update(wanted)
        log.warning(
            "this process has an HTTP proxy, which cannot reach its gateway, so NO_PROXY is now %s; a client that was made before, as a "
            "module is imported, still asks the proxy: set NO_PROXY before the program starts",
            wanted["NO_PROXY"],
        )


def _direct() -> str:
    """What holds now: the small spelling comes first, as in `urllib`."""
    return os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
