"""Replays the operations of a formula on one block after another, in the same few scratch arrays.

A formula is called once, with stand-ins that note what becomes of them. From then on its operations
run without it, and each result lies where an earlier one, no longer needed, has lain. So little
memory is touched that it stays in the nearest cache, and little time is spent in Python, for which
other threads would have to wait.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from array_api_losses._engines.faster import narrowed

FREE: list[Any] = []
"""Scratch between calls: the system takes as long to hand out memory as a formula to fill it."""

MOST_FREE = 12
MOST_BYTES = 2**22
"""What is larger, for rows longer than any block, is let go of."""

LINE = 64
"""Bytes of a cache line."""

WIDE = 16
"""Beside rows of so many entries, what has one number for each is small: it is new each time."""

AXES_OF_ROWS = 2

_FULL: dict[Any, Any] = {}
"""Arrays of one number, only read."""

_FASTER_ON_ARRAYS = frozenset({np.maximum, np.minimum})
"""These take three times as long if one operand is a single number."""


class _StandIn(NDArrayOperatorsMixin):
    """Stands for an array, or a number; `sample` is one of its dtype, of one element or row."""

    def __init__(self, tape: "Replay", sample: Any, place: int) -> None:
        self.tape, self.sample, self.place = tape, sample, place
        self.dtype, self.shape, self.ndim = sample.dtype, sample.shape, sample.ndim

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any) -> "_StandIn":
        return self.tape.note(ufunc, ufunc, inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> "_StandIn":
        own = partial(function, **options) if options else function

        def into(*arrays: Any, out: Any) -> None:
            np.copyto(out, own(*arrays))

        return self.tape.note(into, own, args)

    def __getitem__(self, index: Any) -> "_StandIn":
        return self.apply(lambda array: array[index])

    def apply(
        self,
        function: Callable[..., Any],
        *others: Any,
        into: Callable[..., Any] | None = None,
    ) -> "_StandIn":
        """Note a function that may return what it was given, or a view of it.

        `into` does the same into `out`, which may be one of its arguments.
        """
        return self.tape.note(into, function, (self, *others))

    def astype(self, dtype: Any, **_: object) -> "_StandIn":
        def into(array: Any, out: Any) -> None:
            np.copyto(out, array, casting="unsafe")

        return self.tape.note(into, lambda array: array.astype(dtype), (self,))


class Replay:
    """A formula that returns a tuple of arrays and None, to be done again with other arguments.

    These are arrays of any length, whose other axes are always the same, and any number where it
    has seen an array without axes; elsewhere what it has seen.
    """

    def __init__(self, formula: Callable[..., tuple[Any, ...]], arguments: list[Any]) -> None:
        """Note what `formula` does with `arguments`, of which it sees but one element."""
        self._count = len(arguments)
        self._steps: list[tuple[Callable[..., Any] | None, list[int], int]] = []
        self._functions: list[Callable[..., Any]] = []  # those of the steps, without `out`
        self._arrays: list[Any] = []  # samples of arguments, numbers and results, by place
        self._constants: dict[Any, int] = {}  # their places
        self._filled: list[int] = []  # of these, those that are to be as long as the arguments
        self._scratch: list[int] = []  # the places of results of steps that are filled
        self._results: list[int | None] = []  # their places
        self._of_wide_rows = any(math.prod(np.shape(a)[1:]) >= WIDE for a in arguments)
        self._record(formula, arguments)

    @cached_property
    def anew(self) -> Callable[..., list[Any]]:
        """Replays it in new arrays, of any shapes that broadcast: quick for few elements."""
        return self._written(range(self._count), into=False)

    @cached_property
    def filling(self) -> Callable[..., list[Any]]:
        """Replays it in arrays given behind the arguments, in the order of `laid_out`."""
        return self._written([*range(self._count), *self._scratch, *self._filled], into=True)

    def laid_out(self, shape: tuple[int, ...], buffers: list[Any]) -> list[Any]:
        """Return arrays to be filled, on these buffers where they are large enough, and numbers."""
        laid = []
        for i, place in enumerate(self._scratch):
            sample = self._arrays[place]
            whole = (*shape, *sample.shape[1:])
            nbytes = math.prod(whole) * sample.itemsize
            if i == len(buffers):
                buffers.append(_taken(nbytes))
            elif buffers[i].size < nbytes:
                buffers[i] = _taken(nbytes)
            laid.append(np.ndarray(whole, sample.dtype, buffers[i]))
        return laid + [_full(self._arrays[place], shape) for place in self._filled]

    def new(self, shape: tuple[int, ...], kept: int) -> dict[int, Any]:
        """Return new arrays for the results from number `kept` on."""
        return {
            i: np.empty((*shape, *self._arrays[place].shape[1:]), self._arrays[place].dtype)
            for i, place in enumerate(self._results)
            if place is not None and i >= kept
        }

    def slot_of(self, i: int) -> int | None:
        """Return where among what is laid out a result will lie."""
        place = self._results[i]
        return self._scratch.index(place) if place in self._scratch else None

    def note(
        self, into: Callable[..., Any] | None, function: Callable[..., Any], inputs: tuple[Any, ...]
    ) -> _StandIn:
        """Note a step, and stand in for the output. Without `into` that may lie in an input."""
        # A number has the dtype of what it meets, and not that of the condition of a `where`.
        kinds = [i.dtype for i in inputs if isinstance(i, _StandIn)]
        like = next((kind for kind in kinds if kind.kind != "b"), kinds[0])
        whole = (
            into in _FASTER_ON_ARRAYS
            and not self._of_wide_rows
            and max(getattr(i, "ndim", 0) for i in inputs) == 1
        )
        sources = [
            i
            if isinstance(i, _StandIn)
            else self._constant(i, getattr(i, "dtype", like), whole=whole)
            for i in inputs
        ]
        places = [source.place for source in sources]
        for (_, operands, target), known in zip(self._steps, self._functions, strict=True):
            if known is function and operands == places:
                return _StandIn(self, self._arrays[target], target)
        result = self._add(function(*(source.sample for source in sources)))
        self._steps.append((into, places, result.place))
        self._functions.append(function)
        return result

    def _constant(self, value: Any, dtype: Any, *, whole: bool) -> _StandIn:
        sample = np.asarray(value, dtype)
        key = sample.tobytes(), dtype, whole
        if key in self._constants:
            return _StandIn(self, sample, self._constants[key])
        added = self._add(sample)
        self._constants[key] = added.place
        if whole:
            self._filled.append(added.place)
        return added

    def _add(self, sample: Any) -> _StandIn:
        self._arrays.append(sample)
        return _StandIn(self, sample, len(self._arrays) - 1)

    def _record(self, formula: Callable[..., tuple[Any, ...]], arguments: list[Any]) -> None:
        self._arrays = list(arguments)
        results = formula(
            *(
                _StandIn(self, a[:1].copy() if a.ndim else a, i) if isinstance(a, np.ndarray) else a
                for i, a in enumerate(arguments)
            )
        )
        self._arrays[: len(arguments)] = [None] * len(arguments)  # let go of them
        self._forget_what_is_not_needed([r.place for r in results if r is not None])
        last = {result.place: len(self._steps) for result in results if result is not None}
        for i, (into, sources, target) in reversed([*enumerate(self._steps)]):
            for source in sources:
                last.setdefault(source, i)
                if into is None:  # what may lie in its input needs that as long as itself
                    last[source] = max(last[source], last.get(target, i))

        dying: dict[int, list[int]] = {}
        for place, i in last.items():
            dying.setdefault(i, []).append(place)

        # What a step gives may lie where something lay that no later step needs.
        home: dict[int, int] = {}
        free: list[int] = []
        for i, (function, sources, target) in enumerate(self._steps):
            done = [home[s] for s in dying.get(i, ()) if s in home]
            axes = self._arrays[target].ndim
            small = axes == 0 or (self._of_wide_rows and axes < AXES_OF_ROWS)
            if function is None or small:
                free += done
                self._steps[i] = None, [home.get(s, s) for s in sources], target
                continue
            fit = [
                place
                for place in (*done, *free)
                if self._arrays[place].dtype == self._arrays[target].dtype
                and self._arrays[place].shape == self._arrays[target].shape
                and not (function is np.sign and place in done)  # ten times slower in place
            ]
            home[target] = fit[0] if fit else target
            free = [place for place in (*done, *free) if place != home[target]]
            self._steps[i] = function, [home.get(s, s) for s in sources], home[target]
        self._scratch = [*dict.fromkeys(home.values())]
        self._results = [None if r is None else home.get(r.place, r.place) for r in results]
        # Of the others no more than dtype and shape is needed, and rows may be long.
        for i in {*range(len(self._arrays))}.difference(self._constants.values()):
            sample = self._arrays[i]
            if sample is not None:
                self._arrays[i] = np.broadcast_to(np.empty((), sample.dtype), sample.shape)

    def _written(self, parameters: Iterable[int], *, into: bool) -> Callable[..., list[Any]]:
        """Return the steps as a function of Python, which takes less time than a loop over them.

        Where `into`, those that can be filled fill what lies at their targets.
        """
        known: dict[str, Any] = {
            f"a{place}": self._arrays[place] for place in self._constants.values()
        }
        lines = [f"def written({', '.join(f'a{place}' for place in parameters)}):"]
        for i, (filling, sources, target) in enumerate(self._steps):
            operands = ", ".join(f"a{source}" for source in sources)
            if into and filling is not None:
                known[f"f{i}"] = filling
                lines.append(f"f{i}({operands}, out=a{target})")
            else:
                known[f"f{i}"] = self._functions[i]
                lines.append(f"a{target} = f{i}({operands})")
        results = ["None" if place is None else f"a{place}" for place in self._results]
        exec("\n ".join([*lines, f"return [{', '.join(results)}]"]), known)
        written: Callable[..., list[Any]] = known["written"]
        return written

    def _forget_what_is_not_needed(self, results: list[int]) -> None:
        """Leave out steps that lead to no result, such as parts of slopes that nobody wants."""
        needed, kept = set(results), []
        for step, function in zip(self._steps[::-1], self._functions[::-1], strict=True):
            if step[2] in needed:
                needed.update(step[1])
                kept.append((step, function))
        self._steps = [step for step, _ in reversed(kept)]
        self._functions = [function for _, function in reversed(kept)]


class Room:
    """Where one thread lets a formula be done: the next time overwrites what it gives.

    All arrays among the arguments have the shape that it is told, or rows of it.
    """

    def __init__(self, tape: Replay) -> None:
        self._tape = tape
        self._shape: tuple[int, ...] | None = None
        self._buffers: list[Any] = []
        self._laid: list[Any] = []

    def __call__(
        self, arguments: Sequence[Any], shape: tuple[int, ...], outputs: dict[int, Any]
    ) -> list[Any]:
        """Return the results; those that `outputs` take lie there."""
        if shape != self._shape:
            self._laid, self._shape = self._tape.laid_out(shape, self._buffers), shape
        laid, copied, taken = self._laid.copy(), [], set()
        for i, output in outputs.items():
            slot = self._tape.slot_of(i)
            if (
                slot is None
                or slot in taken
                or laid[slot].dtype != output.dtype
                or not output.flags.c_contiguous  # there `negative` goes wrong, before NumPy 2.5
            ):
                copied.append(i)
            else:
                laid[slot] = output
                taken.add(slot)
        results = self._tape.filling(*arguments, *laid)
        for i in copied:
            outputs[i][...] = narrowed(results[i], outputs[i].dtype)
        return [outputs.get(i, result) for i, result in enumerate(results)]

    def release(self) -> None:
        """Let others have the scratch, and with it what results lie there."""
        FREE.extend(buffer for buffer in self._buffers if buffer.size <= MOST_BYTES)
        del FREE[MOST_FREE:]
        self._buffers = []


def _full(number: Any, shape: tuple[int, ...]) -> Any:
    key, size = (number.flat[0].tobytes(), number.dtype), math.prod(shape)
    found = _FULL.get(key)
    if found is None or found.size < size:
        if len(_FULL) >= MOST_FREE:
            _FULL.clear()
        found = _FULL[key] = np.full(size, number.flat[0])
    return found[:size].reshape(shape)


def _taken(nbytes: int) -> Any:
    with suppress(IndexError):  # another thread may take the last one
        while FREE:
            scratch = FREE.pop()
            if scratch.size >= nbytes:
                return scratch
    # From where a cache line begins: else each store could touch two of them.
    whole: Any = np.empty(nbytes + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return whole[start : start + nbytes]
