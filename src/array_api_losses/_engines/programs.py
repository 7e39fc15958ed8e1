"""The pipeline as programs of few kernels, made once for each kind of call.

Where what is summed along rows lies in memory before, many rows are computed block by block.
"""

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


Runs: TypeAlias = Callable[[Sequence[Any]], list[Any]]
"""Takes the arguments of a program, and gives back its results."""

Make: TypeAlias = Callable[[str, Sequence[Any], Sequence[Node]], Runs]
"""Makes a program of its name, and of what stands in for its arguments and results."""


class Programs:
    """Those of a library, by the type of its arrays and what makes them.

    If each is a whole kernel, nothing lies in memory in between, and it reads float16 by itself.
    """

    def __init__(self, xp: Any, kind: type, make: Make, *, whole: bool = False) -> None:
        self.xp, self._kind, self._make, self._whole = xp, kind, make, whole
        self._losses = lru_cache(MOST_PROGRAMS)(self.losses)
        self._gradients = lru_cache(MOST_PROGRAMS)(self.gradients)

    def forget(self) -> None:
        """Make all anew."""
        self._losses.cache_clear()
        self._gradients.cache_clear()

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
        if self._whole or not call.loss.rowwise:
            return []
        shape, size = call.shape(), math.prod(call.operands[0].shape)
        if size <= BLOCK or not shape:
            return []
        axis = max(range(len(shape)), key=shape.__getitem__)
        step = max(1, shape[axis] * BLOCK // size)
        starts = range(0, shape[axis], step)
        return [_Block(axis, len(shape), slice(start, start + step)) for start in starts]

    def run(self, made: Callable[..., Runs], kind: tuple[Any, ...], *arguments: Any) -> list[Array]:
        """Run the program of this kind on arguments that may be arrays, numbers or None."""
        given = [
            ARRAY if isinstance(a, self._kind) else NUMBER if isinstance(a, float) else a
            for a in arguments
        ]
        return made(*kind, tuple(given))(arguments)

    def losses(self, loss: Loss, given: tuple[Any, ...]) -> Runs:
        """Make the program of the weighted losses."""

        def losses(*arguments: Any) -> list[Node]:
            return [_pipeline.terms_of(TRACED, _pipeline.prepared(TRACED, _call(loss, arguments)))]

        return self.program(loss.name, losses, given, range(loss.rowwise * len(loss.inputs)))

    def gradients(self, loss: Loss, wanted: tuple[bool, ...], given: tuple[Any, ...]) -> Runs:
        """Make the program of the gradients."""

        def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> list[Node | None]:
            call = _call(loss, arguments)
            return _derivatives.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)

        rows = range(3, 3 + loss.rowwise * len(loss.inputs))
        return self.program(f"{loss.name}_gradients", gradients, given, rows)

    def program(
        self,
        name: str,
        pipeline: Callable[..., Sequence[Node | None]],
        given: tuple[Any, ...],
        entries: range = range(0),
    ) -> Runs:
        """Note what a pipeline does; some of its arguments are of entries."""
        arguments = [
            Node(entries=i in entries, number=kind == NUMBER) if kind in {ARRAY, NUMBER} else kind
            for i, kind in enumerate(given)
        ]
        results = [result for result in pipeline(*arguments) if result is not None]
        return self._make(name, arguments, results)

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
        own = getattr(argument, "dtype", None)
        if own is None or (self._whole and (own, dtype) == (self.xp.float16, self.xp.float32)):
            return argument  # a number, or what is read as it lies
        return _pipeline.cast(self.xp, argument, dtype)


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
