"""Memory that the C library keeps for itself."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    A step frees gigabytes in pieces that are too small to be given back one by one, and the next one asks for other sizes: a process that
    trains again and again would hold several times what it uses.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another C library, or Windows
        return None
