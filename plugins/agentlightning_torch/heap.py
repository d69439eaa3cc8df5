"""Returns memory held by the C library to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return freed memory to the system, if the C library can (glibc).

    A step frees gigabytes in small pieces, and the next step asks for other sizes. Without this, a training process would hold several
    times the memory it uses.
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
