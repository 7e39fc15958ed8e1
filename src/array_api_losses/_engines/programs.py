"""The pipeline as programs of few kernels, made once for each kind of call."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.program import TRACED, Node
from array_api_losses._loss import Array, Call, Loss

MOST_PROGRAMS = 256
"""So many are kept of each kind: norms and the like are constants in them.

What is compiled for them, libraries keep by themselves.
"""

BLOCK = 2**24
"""Entries of a block of rows: no more of what lies in between is in memory at once."""

ARRAY, NUMBER = "array", "number"
"""What an argument is; if neither, it is known when the program is made."""

BEFORE = 3
"""So many arguments of gradients come before those of the call."""

Runs: TypeAlias = Callable[[Sequence[Any]], list[Any]]
"""Takes the arguments of a program, and gives back its results."""

Make: TypeAlias = Callable[..., Runs]
"""Makes a program of its name, and of what stands in for its arguments and results."""


class Programs:
    """Those of a library, by the type of its arrays and what makes them of stand-ins."""

    def __init__(self, xp: Any, kind: type, make: Make) -> None:
        self.xp, self._kind, self._make = xp, kind, make
        self._caches: list[Any] = []
        self._losses, self._gradients = self.kept(self.losses), self.kept(self.gradients)

    def kept(self, made: Callable[..., Runs]) -> Callable[..., Runs]:
        """Return the same, which keeps what it has made."""
        self._caches.append(lru_cache(MOST_PROGRAMS)(made))
        return self._caches[-1]

    def forget(self) -> None:
        """Make all anew."""
        for cache in self._caches:
            cache.cache_clear()

    def run(
        self, made: Callable[..., Runs], kind: tuple[Any, ...], *arguments: Any, **how: Any
    ) -> list[Any]:
        """Run the program of this kind on arguments that may be arrays, numbers or None."""
        given = [
            ARRAY if isinstance(a, self._kind) else NUMBER if isinstance(a, float) else a
            for a in arguments
        ]
        return made(*kind, tuple(given), **how)(arguments)

    def losses(self, loss: Loss, given: tuple[Any, ...], **how: Any) -> Runs:
        """Make the program of the weighted losses."""
        return self.program(loss.name, losses_of(loss), given, rows_of(loss), **how)

    def gradients(
        self, loss: Loss, wanted: tuple[bool, ...], given: tuple[Any, ...], **how: Any
    ) -> Runs:
        """Make the program of the gradients, by element."""

        def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> list[Node | None]:
            call = _call(loss, arguments)
            return _derivatives.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)

        rows = rows_of(loss, BEFORE)
        return self.program(f"{loss.name}_gradients", gradients, given, rows, **how)

    def program(
        self,
        name: str,
        pipeline: Callable[..., Sequence[Node | None]],
        given: tuple[Any, ...],
        entries: range = range(0),
        **how: Any,
    ) -> Runs:
        """Note what a pipeline does; some of its arguments are of entries."""
        arguments = [
            Node(entries=i in entries, number=kind == NUMBER) if kind in {ARRAY, NUMBER} else kind
            for i, kind in enumerate(given)
        ]
        results = [result for result in pipeline(*arguments) if result is not None]
        return self._make(name, arguments, results, **how)


def losses_of(loss: Loss) -> Callable[..., list[Node]]:
    """Return the pipeline up to the weighted losses."""

    def losses(*arguments: Any) -> list[Node]:
        return [_pipeline.terms_of(TRACED, _pipeline.prepared(TRACED, _call(loss, arguments)))]

    return losses


def rows_of(loss: Loss, first: int = 0) -> range:
    """Return which arguments of a program have entries, where the operands begin at the first."""
    return range(first, first + loss.rowwise * len(loss.inputs))


class InBlocks(Programs):
    """Programs of several kernels, which leave in memory what lies in between.

    Many rows are computed block by block, so that this stays small.
    """

    def terms(self, call: Call) -> Array:
        """Return the weighted losses, in at least float32."""
        (terms,) = self._run_call(call, self._blocks(call), self._losses, (call.loss,))
        return terms

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        """Return the wanted gradients by element, as `gradients_by_element` does."""
        dtype = call.operands[0].dtype
        # To join results in the dtype that is computed in, is to copy them once more.
        whole = dtype == _pipeline.accumulator(self.xp, dtype)
        blocks = [] if whole else self._blocks(call)
        return self._run_call(call, blocks, self._gradients, (call.loss, wanted), *seed, mean)

    def _run_call(
        self,
        call: Call,
        blocks: list["_Block"],
        made: Callable[..., Runs],
        kind: tuple[Any, ...],
        *first: Any,
    ) -> list[Array]:
        """Run the program of this kind on arguments that come first and on those of a call."""
        if not blocks:
            return self.run(made, kind, *first, *self._arguments(call))
        dtype, found = call.operands[0].dtype, []
        for block in blocks:
            part = call.with_arguments(tuple(map(block.of, call.arguments())))
            results = self.run(made, kind, *map(block.of, first), *self._arguments(part))
            found.append([self._cast(r, dtype) if r.ndim > block.ndim else r for r in results])
        return [self.xp.concat(parts, axis=blocks[0].axis) for parts in zip(*found, strict=True)]

    def _blocks(self, call: Call) -> list["_Block"]:
        """Return the blocks of a call of many rows; nothing of others."""
        if not call.loss.rowwise:
            return []
        shape, size = call.shape(), math.prod(call.operands[0].shape)
        if size <= BLOCK or not shape:
            return []
        axis = max(range(len(shape)), key=shape.__getitem__)
        step = max(1, shape[axis] * BLOCK // size)
        starts = range(0, shape[axis], step)
        return [_Block(axis, len(shape), slice(start, start + step)) for start in starts]

    def _arguments(self, call: Call) -> list[Any]:
        """Return the arguments of a call, so that kernels compute in at least float32.

        For elements it is enough that one of them has that dtype.
        """
        first, *others = call.arguments()
        wide = _pipeline.accumulator(self.xp, first.dtype)
        if call.loss.rowwise:
            others = [self._cast(other, wide) for other in others]
        return [self._cast(first, wide), *others]

    def _cast(self, argument: Any, dtype: Any) -> Any:
        return _pipeline.cast(self.xp, argument, dtype) if hasattr(argument, "dtype") else argument


class _Block(NamedTuple):
    """Some rows: where they are along an axis of the losses, which have so many."""

    axis: int
    ndim: int
    rows: slice

    def of(self, values: Any) -> Any:
        """Return the part of an array that is of these rows, or all of it if it is broadcast."""
        axis = self.axis + min(0, getattr(values, "ndim", 0) - self.ndim)
        if axis < 0 or values.shape[axis] == 1:
            return values
        return values[(*[slice(None)] * axis, self.rows)]


def _call(loss: Loss, arguments: tuple[Any, ...]) -> Call:
    return Call(loss, arguments[:-1], arguments[-1], "none", None)
