"""Threads that stay, since one takes longer to start than a block takes to compute."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

# Not every system knows these.
_PIN: Any = getattr(os, "sched_setaffinity", lambda *_: None)
_ALLOWED: Any = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
_AT_FORK: Any = getattr(os, "register_at_fork", lambda **_: None)

MOST = 4
"""More would wait for the memory, and each holds scratch of its own."""

FOR_THREADS = 2**20
"""So many elements keep more than one thread busy."""


class _Pool:
    """Threads that wait for work, with less ado than those of `concurrent.futures`.

    Each has a processor of its own, where there are no more of these than threads: threads that
    wait for the interpreter wake each other, and Linux likes to put the woken where the waker runs,
    so that two of them often share one processor and leave the other idle.
    """

    def __init__(self, processors: frozenset[int]) -> None:
        self._tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.threads = 0
        own = [{processor} for processor in processors]
        with suppress(RuntimeError):  # there can be no more
            for processor in own if len(own) <= MOST else [set(processors)] * MOST:
                threading.Thread(target=self._serve, args=(processor,), daemon=True).start()
                self.threads += 1

    def _serve(self, processors: set[int]) -> None:
        with suppress(OSError):  # not everyone may
            _PIN(0, processors)
        while True:
            self._tasks.get()()

    def map(self, work: Callable[[int, int], T], parts: list[tuple[int, int]]) -> list[T]:
        """Return `work(start, stop)` for each part, or raise what one raised, when all are done."""
        done: SimpleQueue[None] = SimpleQueue()
        results: dict[int, T] = {}
        errors: list[BaseException] = []

        def run(i: int) -> None:
            try:
                results[i] = work(*parts[i])
            except BaseException as error:  # for the caller
                errors.append(error)
            finally:
                done.put(None)

        for i in range(len(parts)):
            self._tasks.put(partial(run, i))
        for _ in parts:
            done.get()
        if errors:
            raise errors[0]
        return [results[i] for i in range(len(parts))]


_POOLS: dict[frozenset[int], _Pool] = {}
"""By processors. A process that is forked has none of the threads."""

_AT_FORK(after_in_child=_POOLS.clear)


def _processors() -> frozenset[int]:
    return frozenset(_ALLOWED(0))


def allowed(elements: int) -> int:
    """Return how many threads may work: as many as OMP_NUM_THREADS and the processors allow.

    Few elements need one. A caller that is not the main thread is one of several that share them
    already.
    """
    if elements < FOR_THREADS or threading.current_thread() is not threading.main_thread():
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # on the first level
    most = int(asked) if asked.isdecimal() else MOST
    return max(1, min(most, len(_processors()), MOST))


def shared(work: Callable[[int, int], T], cuts: list[int]) -> list[T]:
    """Return `work(start, stop)` for neighbouring cuts, each in a thread of its own if it can."""
    parts = [*pairwise(cuts)]
    if len(parts) > 1 and not sys.is_finalizing():  # then other threads no longer run
        key = _processors()
        pool = _POOLS.get(key) or _POOLS.setdefault(key, _Pool(key))
        if pool.threads:
            return pool.map(work, parts)
    return [work(*part) for part in parts]
