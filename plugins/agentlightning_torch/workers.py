"""Gives the thread that computes the processor's cores for itself.

Each thread that runs torch has OpenMP workers of its own, and keeps them when it is done. GNU's OpenMP counts the workers of all threads.
As soon as they are more than the cores, idle or not, parallel operations stop to wait actively for their parts and sleep instead. A decode
step of Qwen2.5 0.5B on two cores then takes 1.6 times as long. So a thread that is done with its work ends its workers. The next operation
starts new ones, in less than a millisecond.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SOFT = 1
"""`omp_pause_soft`: keep the threads' own data."""


def end_workers() -> None:
    """End the OpenMP workers of this thread, where the library can (OpenMP 5, Linux)."""
    pause = _pause()
    if pause is not None:
        pause(SOFT)


@contextmanager
def ending_workers() -> Iterator[None]:
    """End the OpenMP workers of this thread after the block. Also a decorator."""
    try:
        yield
    finally:
        end_workers()


@cache
def _pause() -> Any:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).omp_pause_resource_all
    except (OSError, AttributeError):  # torch was built with another library
        return None
