"""Notices when the wall clock jumps. Leases use that clock, because every process reads it, and it goes on after a restart."""

from __future__ import annotations

import time

SLACK = 1.0
"""Seconds by which a clock may be corrected between two readings. More is a jump."""
PRECISION = 0.1
"""Maximum seconds between the two clocks of one reading."""


class Clock:
    """Compares the wall clock with the monotonic one."""

    def __init__(self) -> None:
        now, monotonic = _read()
        self._offset = now - monotonic

    def read(self) -> tuple[float, float]:
        """Return the time in seconds since the epoch, and the seconds by which the clock jumped since the last reading: below 0 if it went
        back, 0 if it did not jump."""
        now, monotonic = _read()
        before, self._offset = self._offset, now - monotonic
        jump = self._offset - before
        return now, jump if abs(jump) > SLACK else 0.0


def _read() -> tuple[float, float]:
    """Return the wall clock and the monotonic clock of one moment. A process that sleeps between the two reads them again."""
    while True:
        before, now, after = time.monotonic(), time.time(), time.monotonic()
        if after - before < PRECISION:
            return now, before
