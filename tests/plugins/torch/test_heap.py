"""What is freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agentlightning_torch.heap import _trim, give_back

HOLDS = """
from pathlib import Path
from agentlightning_torch.heap import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

pieces = [bytearray(60_000) for _ in range(3000)]
last = bytearray(60_000)  # it lies behind them, so that nothing is given back by itself
del pieces
held = resident()
give_back()
print(held - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or _trim() is None, reason="another C library gives back in its own way")
def test_freed_memory_is_handed_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100_000_000


def test_it_does_no_harm_where_nothing_was_freed() -> None:
    give_back()
    give_back()
