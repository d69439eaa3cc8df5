"""Looks whether verl is there, for `agl doctor`. (Ray and the workers take a quarter of a minute to start.)"""

from __future__ import annotations

import sys

from agentlightning_verl.trainer import find_verl


def check() -> str:
    """Find verl in this environment. `ConfigError` where it is not."""
    python, cuda = find_verl(None)
    assert python == sys.executable
    return f"verl is in this environment, and sees {'a GPU' if cuda else 'no GPU: it trains on the CPU'}"
