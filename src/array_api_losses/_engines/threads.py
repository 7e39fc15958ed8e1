"""Threads that stay, since one takes longer to start than a block takes to compute."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

MOST = 4
"""More would wait for the memory, and each holds scratch of its own."""

_POOLS: dict[int, ThreadPoolExecutor] = {}
"""By process, since one that is forked has the pool of the other but not its threads."""


def allowed() -> int:
    """Return how many threads may work: as many as OMP_NUM_THREADS and the processors allow.

    A caller that is not the main thread is one of several that share them already.
    """
    if threading.current_thread() is not threading.main_thread():
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    most = int(asked) if asked.isdecimal() else MOST
    has = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(most, has or 1, MOST))


def shared(work: Callable[[int, int], T], cuts: list[int]) -> list[T]:
    """Return `work(start, stop)` for neighbouring cuts, the first of which the caller runs."""
    first, *rest = pairwise(cuts)
    if not rest:
        return [work(*first)]
    process = os.getpid()
    pool = _POOLS.get(process) or _POOLS.setdefault(process, ThreadPoolExecutor(MOST - 1))
    others = [pool.submit(work, *bounds) for bounds in rest]
    try:
        done = work(*first)
    finally:
        wait(others)
    return [done, *(other.result() for other in others)]
