"""Notices when the wall clock jumps. Leases use that clock, because every process reads it, and it goes on after a restart."""

from __future__ import annotations

import time

SLACK = 1.0
"""Seconds by which a clock may be corrected between two looks. More is a jump."""


class Clock:
    """Compares the wall clock with the monotonic one."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def jump(self) -> float:
        """Return the seconds by which the wall clock jumped since the last look: below 0 if it went back, 0 if it did not jump."""
        before, self._offset = self._offset, time.time() - time.monotonic()
        jump = 0.0 if before is None else self._offset - before
        return jump if abs(jump) > SLACK else 0.0
