"""Replays the operations of a formula on one block after another, in the same few scratch arrays.

A formula is called once, with stand-ins that note what becomes of them. From then on its operations
run without it, and each result lies where an earlier one, no longer needed, has lain. So little
memory is touched that it stays in the nearest cache, and little time is spent in Python, for which
other threads would have to wait.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

FREE: list[Any] = []
"""Scratch between calls: the system takes as long to hand out memory as a formula to fill it."""

MOST_FREE = 12

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
    """A formula that returns a tuple, of arrays and None; the next call overwrites the arrays.

    It is to be called with arrays of one length, whose other axes are always the same, and with any
    number where it has seen an array without axes; with the same ones elsewhere.
    """

    def __init__(self, formula: Callable[..., tuple[Any, ...]], arguments: list[Any]) -> None:
        """Note what `formula` does with `arguments`, of which it sees but one element."""
        self._steps: list[tuple[Callable[..., Any] | None, list[int], int]] = []
        self._functions: list[Callable[..., Any]] = []  # those of the steps, without `out`
        self._planned: list[tuple[Any, Callable[..., Any], Callable[[list[Any]], Any], int]] = []
        self._results: list[Any] = []  # their places, or None
        self._written: Callable[..., list[Any]] | None = None
        self._arrays: list[Any] = []  # arguments, numbers and scratch, by place
        self._constants: dict[Any, int] = {}  # their places
        self._filled: list[int] = []  # the places of those that are to be as long as a block
        self._scratch: dict[int, Any] = {}
        self._size = 0
        self._of_wide_rows = any(math.prod(np.shape(a)[1:]) >= WIDE for a in arguments)
        self._record(formula, arguments)

    def copy(self) -> "Replay":
        """Return the same with scratch of its own, for another thread."""
        other = object.__new__(Replay)
        other.__dict__ = {
            **self.__dict__,
            "_arrays": self._arrays.copy(),
            "_scratch": dict.fromkeys(self._scratch),
        }
        return other

    def __call__(self, arguments: list[Any], outputs: dict[int, Any]) -> list[Any]:
        """Return what the formula does for `arguments`; `outputs` take some of the results."""
        size = next(len(a) for a in arguments if isinstance(a, np.ndarray) and a.ndim)
        if size != self._size:
            self._fit(size)
        arrays = self._arrays
        arrays[: len(arguments)] = arguments
        copies, taken = [], set()
        for i, output in outputs.items():
            place = self._results[i]
            free = place in self._scratch and place not in taken
            if free and arrays[place].dtype == output.dtype:
                arrays[place] = output
                taken.add(place)
            else:
                copies.append((place, output))
        for into, function, inputs, target in self._planned:
            if into is None:
                arrays[target] = function(*inputs(arrays))
            else:
                into(*inputs(arrays), out=arrays[target])
        for place, output in copies:
            output[...] = arrays[place]
        return [None if place is None else arrays[place] for place in self._results]

    def anew(self, arguments: Sequence[Any]) -> list[Any]:
        """Return the same in new arrays, of any shapes that broadcast: quick for few elements."""
        if self._written is None:
            self._written = self._written_out(len(arguments))
        return self._written(*arguments)

    def in_scratch(self, arguments: Sequence[Any], shape: tuple[int, ...], kept: int) -> list[Any]:
        """Return the same, but only the results from number `kept` on in new arrays.

        `shape` is that of elements, or of how many rows there are; all arrays among the arguments
        have it, and are copied unless they lie in one piece. The other results may be overwritten
        soon.
        """
        axes, size = len(shape), math.prod(shape)
        flat = [
            a.reshape(size, *a.shape[axes:]) if isinstance(a, np.ndarray) and a.ndim else a
            for a in arguments
        ]
        outputs = {
            i: np.empty((size, *self._arrays[place].shape[1:]), self._arrays[place].dtype)
            for i, place in enumerate(self._results)
            if place is not None and i >= kept
        }
        own = self.copy()
        results = own(flat, outputs)
        own.release()
        for i, output in outputs.items():
            results[i] = output.reshape((*shape, *output.shape[1:]))
        return results

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
        for function, (into, sources, target) in zip(self._functions, self._steps, strict=True):
            one = slice(sources[0], sources[0] + 1)  # which `itemgetter` gives as a list too
            inputs = itemgetter(*sources) if len(sources) > 1 else itemgetter(one)
            self._planned.append((into, function, inputs, target))
        self._scratch = dict.fromkeys(home.values())
        self._results = [r and home.get(r.place, r.place) for r in results]

    def _written_out(self, count: int) -> Callable[..., list[Any]]:
        """Return the steps as a function of Python, which takes less time than a loop over them."""
        known: dict[str, Any] = {f"f{i}": function for i, function in enumerate(self._functions)}
        known |= {f"a{place}": self._arrays[place] for place in self._constants.values()}
        steps = [
            f"a{target} = f{i}({', '.join(f'a{source}' for source in sources)})"
            for i, (_, sources, target) in enumerate(self._steps)
        ]
        results = ["None" if place is None else f"a{place}" for place in self._results]
        head = f"def written({', '.join(f'a{i}' for i in range(count))}):"
        exec("\n ".join([head, *steps, f"return [{', '.join(results)}]"]), known)
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

    def _fit(self, size: int) -> None:
        for place, old in self._scratch.items():
            dtype, shape = self._arrays[place].dtype, (size, *self._arrays[place].shape[1:])
            nbytes = math.prod(shape) * dtype.itemsize
            new = old if old is not None and old.size >= nbytes else _taken(nbytes)
            self._scratch[place] = new
            self._arrays[place] = new[:nbytes].view(dtype).reshape(shape)
        for place in self._filled:
            self._arrays[place] = _full(self._arrays[place], size)
        self._size = size

    def release(self) -> None:
        """Let others have the scratch."""
        FREE.extend(scratch for scratch in self._scratch.values() if scratch is not None)
        del FREE[MOST_FREE:]
        self._scratch = dict.fromkeys(self._scratch)


def _full(number: Any, size: int) -> Any:
    key = number.flat[0].tobytes(), number.dtype
    found = _FULL.get(key)
    if found is None or found.size < size:
        if len(_FULL) >= MOST_FREE:
            _FULL.clear()
        found = _FULL[key] = np.full(size, number.flat[0])
    return found[:size]


def _taken(nbytes: int) -> Any:
    with suppress(IndexError):  # another thread may take the last one
        while FREE:
            scratch = FREE.pop()
            if scratch.size >= nbytes:
                return scratch
    return np.empty(nbytes, np.uint8)
