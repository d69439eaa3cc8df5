"""The verl check of `agl doctor`: find verl. It starts no workers, because Ray takes 15 s."""

from __future__ import annotations

import sys

from agentlightning_verl.environment import find_verl


def check() -> str:
    """Find verl in this environment. Raises `ConfigError` if it is missing."""
    python, cuda = find_verl(None)
    assert python == sys.executable
    return f"verl is installed here and sees {'a GPU' if cuda else 'no GPU, so it trains on the CPU'}"
