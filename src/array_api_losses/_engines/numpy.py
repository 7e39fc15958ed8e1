"""NumPy: large arrays in blocks that stay in the cache, so that memory does not grow with them.

A block is checked, converted, computed and added up while it is near; value and gradient come from
one pass. `numpy.nditer` cuts the blocks, in the order of memory, from arrays of any layout, and a
few threads share them: NumPy lets go of the interpreter while it computes.
"""

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

import array_api_compat.numpy as np

from array_api_losses import _derivatives, _pipeline
from array_api_losses._arrays import check_labels
from array_api_losses._engines.faster import PRIMITIVES
from array_api_losses._engines.plain import Plain
from array_api_losses._engines.replay import Replay
from array_api_losses._engines.threads import allowed, shared
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER

T = TypeVar("T")

SMALL = 2**12
"""Up to so many elements it costs nothing to put results in new memory."""

SMALL_ROWS = 2**13
"""Likewise up to so many entries of rows."""

PLAIN = 2**15
"""Up to so many elements take the plain path where the call is not simple."""

WHOLE = 2**18
"""Up to so many elements are not cut into blocks where the call is simple."""

BLOCK = 2**16
"""Elements of a block, for one thread: what it touches stays in the nearest cache."""

BIG_BLOCK = 2**18
"""The same for several threads: with less they wait for the interpreter more than they compute."""

ROWS = 2**18
"""Entries of a block of rows."""

FOR_THREADS = 2**20
"""So many elements keep more than one thread busy."""

MOST_TAPES = 64
TAPES: dict[Any, Replay] = {}

FEW = 64
"""Up to so many labels are looked at fastest in Python."""

SIGNS = frozenset({1, -1})

for primitive, function in PRIMITIVES.items():
    FASTER[primitive][np.__name__] = function


class _Silence(threading.local):
    context: Context | None = None


_SILENCE = _Silence()


def _quietly(function: Callable[..., T], *arguments: Any) -> T:
    """As within `numpy.errstate`, which takes a tenth of a small call: keep a context instead."""
    context, _SILENCE.context = _SILENCE.context, None  # a call within this one has its own
    if context is None:
        context = Context()
        context.run(np.seterr, all="ignore")
    try:
        return context.run(function, *arguments)
    finally:
        _SILENCE.context = context


class NumPy(Plain):
    """Few elements take the plain path; more come in blocks."""

    def value(self, call: Call) -> Array:
        first = call.operands[0]
        if first.size <= WHOLE and _is_simple(call):
            return _quietly(self._whole, call, (), None)[0]
        if first.size <= PLAIN:
            return super().value(call)
        if call.reduction == "none":
            result = _empty(call)
            self._in_blocks(call, losses=result)
            return result
        with self.quiet():
            total = self._in_blocks(call, losses=True)[0]
            return _pipeline.finished(np, total, self._weights(call), first.dtype)[()]

    def _whole(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        """Replay what the plain path does with a simple call: the formula and a sum."""
        loss, operands, _, reduction, _, trusted, _ = call
        first, label = operands[0], operands[loss.first_parameter - 1]  # or the last input
        shape, count, width, with_value = first.shape, first.size, None, cotangent is None
        if loss.rowwise:
            *shape, width = shape
            count = math.prod(shape)
        check = not (trusted or (count <= FEW and SIGNS.issuperset(label.ravel().tolist())))
        key = loss, wanted, with_value, check, first.dtype, label.dtype, width
        tape = TAPES.get(key) or _noted_of_whole(*key)
        if wanted:
            operands = (*operands, _derivatives.seed_of(np, call, cotangent, count)[0])
        few = SMALL_ROWS if width else SMALL
        if first.size > few and first.flags.c_contiguous and label.flags.c_contiguous:
            kept = 1 if reduction == "none" else 2
            good, value, *found = tape.in_scratch(operands, shape, kept)
        else:
            good, value, *found = tape.anew(operands)
        if check and not good.all():
            check_labels(np, call)
        if with_value:
            if reduction != "none":
                value = np.add.reduce(value, None, _pipeline.accumulator(np, value.dtype))
            weights = count if reduction == "mean" else None
            value = _pipeline.finished(np, value, weights, first.dtype)
        if not wanted:
            return value, ()
        return value, tuple(
            [None if slope is None else _pipeline.cast(np, slope, first.dtype) for slope in found]
        )

    def folded(self, call: Call) -> tuple[Any, Any]:
        if call.operands[0].size <= PLAIN:
            return super().folded(call)
        return self._in_blocks(call, losses=True, check=False)[0], self._weights(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        first = call.operands[0]
        if first.size <= WHOLE and _is_simple(call):
            return _quietly(self._whole, call, wanted, cotangent)
        if first.size <= PLAIN:
            return super().gradient(call, wanted, cotangent)
        with self.quiet():
            weights = self._weights(call)
            seed = _derivatives.seed_of(np, call, cotangent, weights)
            value = mean = None
            losses: Any = False
            if call.reduction == "mean" and wanted[-1]:
                # It has to be known beforehand, and is not rounded yet where it meets the losses.
                total = self._in_blocks(call, losses=True)[0]
                wide = _pipeline.accumulator(np, first.dtype)
                mean = _pipeline.finished(np, total, weights, wide)[()]
                value = _pipeline.cast(np, mean, first.dtype)
            elif cotangent is None:
                losses = call.reduction != "none" or _empty(call)
            total, gradients = self._in_blocks(call, wanted, seed, mean, losses=losses)
            if losses is True:
                value = _pipeline.finished(np, total, weights, first.dtype)[()]
            elif losses is not False:
                value = losses
        return (value if cotangent is None else None), gradients

    def run(self, call: Call) -> Array:
        return _pipeline.value(np, call)[()]  # as NumPy's own `sum`: a scalar, not a 0-d array

    def checked(self, call: Call) -> Call:
        if call.trusted:
            return call
        label = call.label
        if call.weight is None and (
            SIGNS.issuperset(label.ravel().tolist())
            if label.size <= FEW
            else (np.abs(label) == 1).all()
        ):
            return call.as_trusted()
        return super().checked(call)

    def readable(self, call: Call) -> bool:
        return True

    def quiet(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def number(self, name: str, argument: str, value: Any, like: Array) -> Any:
        # A NumPy scalar is a number and an array at once; one of the right dtype stays what it is.
        if isinstance(value, np.generic) and value.dtype == like.dtype:
            return value
        return super().number(name, argument, value, like)

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        found = []
        for array in arrays:
            if type(array) is not np.ndarray:
                return None
            found.append(array.dtype)
        return tuple(found)

    def device(self, array: Array) -> Any:
        return "cpu"

    def compiled(self, loss: Loss) -> Plain:
        if not _is_elementwise(loss):
            return self
        try:
            from array_api_losses._engines import numba
        except ImportError as error:
            msg = (
                "jit: compiling for NumPy needs Numba, which is not installed. Install it, e.g."
                " `pip install numba`."
            )
            raise ImportError(msg) from error
        return numba.ENGINE

    def _weights(self, call: Call) -> Any:
        """W, where it is needed."""
        if call.reduction != "mean":
            return None
        return _pipeline.weight_sum(np, call, np.float64)

    def _in_blocks(
        self,
        call: Call,
        wanted: tuple[bool, ...] | None = None,
        seed: tuple[Any, Array | None] = (1, None),
        mean: Array | None = None,
        *,
        losses: Array | bool,
        check: bool = True,
    ) -> tuple[Any, tuple[Array | None, ...]]:
        """Fill `losses` with the weighted losses or, if that is True, add them up; and gradients.

        The gradient in an argument of one element is a sum, in others an array that is filled.
        """
        first = call.operands[0]
        wide = _pipeline.accumulator(np, first.dtype)
        wanted = wanted or (False,) * len(call.arguments)
        small = [np.size(argument) <= 1 for argument in call.arguments]
        formula = _Formula(
            call, wanted, seed, mean, losses is not False, check and not call.trusted
        )
        arrays: dict[int, Any] = {}  # by their place among the results of the formula
        if isinstance(losses, np.ndarray):
            arrays[1] = losses
        for i, (argument, want) in enumerate(zip(call.arguments, wanted, strict=True)):
            if want and not small[i]:
                rows = call.loss.has_rows(i)
                broadcast = not rows and argument.shape != call.shape
                arrays[i + 2] = _empty(call, wide if broadcast else first.dtype, rows=rows)

        def work(tape: Replay, arguments: list[Any], outputs: dict[int, Any]) -> list[Any]:
            good, terms, *gradients = tape(arguments, outputs)
            if good is not None and np.count_nonzero(good) < good.size:
                check_labels(np, call)
            columns = [terms if losses is True else None]
            columns += [g if one else None for g, one in zip(gradients, small, strict=True)]
            return [
                0.0 if c is None else np.add.reduce(c, dtype=_pipeline.accumulator(np, c.dtype))
                for c in columns
            ]

        over = self._over_rows if call.loss.rowwise else self._over_blocks
        sums = over(formula, work, [*call.arguments, *formula.varying], arrays)
        total, *totals = np.sum(np.asarray(sums, dtype=np.float64), axis=0)
        return total, tuple(
            None
            if not want
            else np.full(argument.shape, totals[i], dtype=first.dtype)[()]
            if small[i]
            else _derivatives.summed_to(np, arrays[i + 2], argument.shape, first.dtype)
            for i, (want, argument) in enumerate(zip(wanted, call.arguments, strict=True))
        )

    def _over_blocks(
        self,
        formula: "_Formula",
        work: Callable[[Replay, list[Any], dict[int, Any]], T],
        arguments: list[Any],
        outputs: dict[int, Any],
    ) -> list[T]:
        """Let `work` replay a formula of `arguments` on every block, with those of `outputs`."""
        arguments = [
            argument.reshape(())
            if isinstance(argument, np.ndarray) and argument.size == 1
            else argument
            for argument in arguments
        ]
        places = [i for i, argument in enumerate(arguments) if np.size(argument) > 1]
        flags: Any = [["readonly"]] * len(places) + [["writeonly"]] * len(outputs)
        threads = allowed() if arguments[0].size >= FOR_THREADS else 1
        size = BLOCK if threads == 1 else BIG_BLOCK
        whole = np.nditer(
            [*(arguments[i] for i in places), *outputs.values()],
            ["external_loop", "buffered", "ranged", "delay_bufalloc"],
            flags,
            buffersize=size,
        )

        tape = self._tape(formula, [a[(0,) * (a.ndim - 1)] if np.ndim(a) else a for a in arguments])

        def part(start: int, stop: int) -> list[T]:
            own, done, own_tape = list(arguments), [], tape.copy()
            with self.quiet(), whole.copy() as iterator:
                iterator.iterrange = start, stop
                iterator.reset()
                for views in iterator:
                    for i, view in zip(places, views, strict=False):
                        own[i] = view
                    outs = dict(zip(outputs, views[len(places) :], strict=True))
                    done.append(work(own_tape, own, outs))
            own_tape.release()
            return done

        blocks = -(-whole.itersize // size)
        threads = min(threads, blocks)
        cuts = [size * (blocks * k // threads) for k in range(threads)] + [whole.itersize]
        return [result for done in shared(part, cuts) for result in done]

    def _over_rows(
        self,
        formula: "_Formula",
        work: Callable[[Replay, list[Any], dict[int, Any]], T],
        arguments: list[Any],
        outputs: dict[int, Any],
    ) -> list[T]:
        """Let `work` run a formula of `arguments` on blocks of rows, with those of `outputs`."""
        loss, shape = formula.call.loss, formula.call.shape
        width, count = arguments[0].shape[-1], math.prod(shape)

        def flat(array: Any, *, rows: bool) -> Any:
            if rows:
                return array.reshape(count, width)  # a copy only of three axes or more, with gaps
            if not isinstance(array, np.ndarray):
                return array
            one = array.size == 1 < count
            return array.reshape(()) if one else np.broadcast_to(array, shape).reshape(count)

        inputs = [flat(a, rows=loss.has_rows(i)) for i, a in enumerate(arguments)]
        results = {i: a.reshape(count, *a.shape[len(shape) :]) for i, a in outputs.items()}
        size = max(1, ROWS // max(1, width))
        tape = self._tape(formula, inputs)

        def part(start: int, stop: int) -> list[T]:
            own_tape, done = tape.copy(), []
            with self.quiet():
                for begin in range(start, stop, size):
                    cut = slice(begin, min(begin + size, stop))
                    own = [a[cut] if np.ndim(a) else a for a in inputs]
                    done.append(work(own_tape, own, {i: out[cut] for i, out in results.items()}))
            own_tape.release()
            return done

        threads = allowed() if arguments[0].size >= FOR_THREADS else 1
        cuts = [count * k // threads for k in range(threads + 1)]
        return [result for done in shared(part, cuts) for result in done]

    def _tape(self, formula: "_Formula", arguments: list[Any]) -> Replay:
        """Return what was noted of this formula, for numbers and dtypes as these."""
        key = (
            formula.key,
            *((a.dtype, a.shape[1:]) if np.ndim(a) else _exactly(a) for a in arguments),
        )
        return TAPES.get(key) or _noted(key, formula, arguments)


def _exactly(number: Any) -> tuple[Any, ...]:
    """What tells a number, or None, from others: `repr` of an array has but a few digits."""
    array = np.asarray(number)
    return type(number), array.dtype, array.tobytes()


def _empty(call: Call, dtype: Any = None, *, rows: bool = False) -> Array:
    """Return a new array for the losses of a call, or for rows as its inputs have."""
    first = call.operands[0]
    dtype = first.dtype if dtype is None else dtype
    if call.loss.rowwise:
        return np.empty(first.shape if rows else call.shape, dtype=dtype)
    return np.empty_like(first, dtype=dtype, subok=False)  # laid as it is, to be written in order


def _noted(key: Any, formula: Callable[..., tuple[Any, ...]], arguments: list[Any]) -> Replay:
    if len(TAPES) >= MOST_TAPES:
        TAPES.clear()
    with np.errstate(all="ignore"):
        tape = TAPES[key] = Replay(formula, arguments)
    return tape


def _is_elementwise(loss: Loss) -> bool:
    """Whether it is a loss of elements that have labels, which is what is fused."""
    return loss.label is not None and not loss.rowwise


def _is_simple(call: Call) -> bool:
    """Whether it has no weights, and numbers for parameters."""
    loss = call.loss
    if call.weight is not None:
        return False
    for parameter in call.operands[loss.first_parameter :]:
        if type(parameter) is not float:
            return False
    return True


def _noted_of_whole(
    loss: Loss,
    wanted: tuple[bool, ...],
    with_value: Any,
    check: Any,
    dtype: Any,
    label_dtype: Any,
    width: Any,
) -> Replay:
    """Note whether labels are good, the losses, and the gradients for a last argument, the seed."""
    at, after, count = len(loss.inputs), loss.first_parameter, len(loss.operands)

    def formula(*arguments: Any) -> tuple[Any, ...]:
        arrays, good = arguments[:after], None
        if check:
            label = _pipeline.cast(np, arguments[at], dtype)
            good = np.abs(label if label_dtype.kind == "i" else arguments[at]) == 1
            arrays = (*arguments[:at], label)
        call = _pipeline.prepared(np, Call(loss, arrays, None, "sum", None, trusted=True))
        operands = (*call.operands, *arguments[after:count])  # numbers need no preparing
        losses = loss.value(np, *operands) if with_value else None
        if not wanted:
            return good, losses
        call = call.with_arguments((*operands, None))
        return good, losses, *_derivatives.gradients(np, call, wanted, (arguments[-1], None), None)

    kinds = [dtype] * count + [_pipeline.accumulator(np, dtype)] * bool(wanted)
    kinds[after - 1] = label_dtype
    rows = (1,) if width is None else (1, width)
    samples = [np.ones(rows if i < at else 1, dtype=kind) for i, kind in enumerate(kinds)]
    return _noted((loss, wanted, with_value, check, dtype, label_dtype, width), formula, samples)


@dataclass(frozen=True)
class _Formula:
    """What is computed of a block: whether its labels are good, the weighted losses, gradients."""

    call: Call
    wanted: tuple[bool, ...]
    seed: tuple[Any, Array | None]
    mean: Array | None
    losses: bool
    check: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """All that decides on the operations, but the arguments."""
        call, seed = self.call, "varying" if self.varying else tuple(map(_exactly, self.seed))
        parts = (call.loss, call.trusted, self.wanted, seed, _exactly(self.mean))
        return (*parts, self.losses, self.check)

    @property
    def varying(self) -> list[Array]:
        """A cotangent that is an array, and so comes in blocks too."""
        return [] if np.ndim(self.seed[0]) == 0 else [self.seed[0]]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        count = len(self.call.arguments)
        block = self.call.with_arguments(arguments[:count])
        if block.loss.label is not None and block.label.dtype.kind == "i":
            # No other integer rounds to 1, so this is quicker.
            at, label = len(block.loss.inputs), _pipeline.cast(np, block.label, arguments[0].dtype)
            block = block.with_arguments((*arguments[:at], label, *arguments[at + 1 : count]))
        good = _good(block) if self.check else None
        if good is not None and block.weight is None:
            block = block.as_trusted()
        block = _pipeline.prepared(np, block)
        terms = in_weight = None
        if self.losses or self.wanted[-1]:
            losses = block.loss.value(np, *block.operands)
            terms = _pipeline.weighed(np, block.weight, losses) if self.losses else None
            if self.wanted[-1]:
                in_weight = _derivatives.slope_in_weight(np, block.weight, losses, self.mean)
        seed = (arguments[count], None) if self.varying else self.seed
        return good, terms, *_derivatives.gradients(np, block, self.wanted, seed, in_weight)


def _good(call: Call) -> Array:
    """Whether each label is 1 or -1, or does not count."""
    good = np.abs(call.label) == 1
    return good if call.weight is None else good | (call.weight == 0)


ENGINE = NumPy(np)
