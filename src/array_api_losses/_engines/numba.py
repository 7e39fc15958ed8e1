"""Numba: one compiled loop over the elements, for `jit` on arrays of NumPy.

The loop calls the formula itself, unchanged, on one element after another; threads share it out.
What it is not made for (weights, an array of margins, float16, gaps in memory) runs as without it.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable

from array_api_losses import _derivatives, _primitives
from array_api_losses._arrays import check_labels
from array_api_losses._engines.numpy import NumPy, finished, weights_of
from array_api_losses._engines.threads import allowed, shared
from array_api_losses._loss import Array, Call, Loss

BLOCK = 2**12
"""Elements that are added up in the dtype of the losses, before they go to float64."""

GROUP = 2**8 * BLOCK
"""Elements whose blocks are added up by themselves, so that no sum is one of very many blocks."""

DTYPES = frozenset({np.dtype(np.float32), np.dtype(np.float64)})


# Numba wants the same annotations on both functions.
@overload(_primitives.select)
def _select(xp: Any, y: Any, a: Any, b: Any) -> Callable[..., Any]:
    def compiled_select(xp: Any, y: Any, a: Any, b: Any) -> Any:
        return a if y > 0 else b  # if y is NaN, the whole result is refused

    return compiled_select


@overload(_primitives.zero)
def _zero(xp: Any, y: Any) -> Callable[..., Any]:
    nil = np.float32(0) if y == numba.float32 else np.float64(0)

    def compiled_zero(xp: Any, y: Any) -> Any:
        return nil

    return compiled_zero


@overload(_primitives.steep)
def _steep(xp: Any, d: Any) -> Callable[..., Any]:
    one = np.float32(1) if d == numba.float32 else np.float64(1)

    def compiled_steep(xp: Any, d: Any) -> Any:
        return one if d > 0 else (-one if d < 0 else d)

    return compiled_steep


# Numba takes tuples of any arrays, but builds and takes them apart only in code that names each
# element; so what is done to several inputs is done to the first ones, and then to the last.
@cache
def _cutter(count: int) -> Callable[..., Any]:
    """Return a function that takes views of `count` arrays."""
    if count == 0:
        return register_jitable(lambda arrays, start, stop: ())
    first, last = _cutter(count - 1), count - 1

    @register_jitable
    def compiled_cut(arrays: Any, start: int, stop: int) -> Any:
        return first(arrays, start, stop) + (arrays[last][start:stop],)

    return compiled_cut


@cache
def _reader(count: int) -> Callable[..., Any]:
    """Return a function that takes one element each of `count` arrays."""
    if count == 0:
        return register_jitable(lambda arrays, i: ())
    first, last = _reader(count - 1), count - 1

    @register_jitable
    def compiled_read(arrays: Any, i: int) -> Any:
        return first(arrays, i) + (arrays[last][i],)

    return compiled_read


@cache
def _writer(wanted: tuple[bool, ...]) -> Callable[..., Any]:
    """Return a function that writes the slopes that are wanted, times a factor."""
    if not wanted:
        return register_jitable(lambda arrays, i, found, factor: None)
    first, last = _writer(wanted[:-1]), len(wanted) - 1
    if not wanted[-1]:
        return first

    @register_jitable
    def compiled_write(arrays: Any, i: int, found: Any, factor: Any) -> None:
        first(arrays, i, found, factor)
        arrays[last][i] = found[last] * factor

    return compiled_write


@cache
def _loop(loss: Loss, wanted: tuple[bool, ...], losses: str) -> Callable[..., Any]:
    """Compile the loop for the gradients that are wanted; `losses` is "fill", "add" or ""."""
    value, slopes = register_jitable(loss.value), register_jitable(loss.slopes)
    gradient, add, fill = any(wanted), losses == "add", losses == "fill"
    count = len(loss.inputs)
    cut, read, write = _cutter(count), _reader(count), _writer(wanted[:count])

    # Of all liberties, only that of adding in another order, without which nothing is vectorised.
    @numba.njit(nogil=True, fastmath={"reassoc"}, error_model="numpy")
    def compiled_loop(
        inputs: Any, label: Any, parameters: Any, seed: Any, terms: Any, found: Any
    ) -> tuple[float, float]:
        total = group = wrong = 0.0
        kind = inputs[0].dtype.type
        zero, one = kind(0), kind(1)
        for start in range(0, label.size, BLOCK):
            part = bad = zero
            # Views of the block, since indices that start at 0 are what LLVM vectorises.
            stop = start + BLOCK
            xs, labels, losses = cut(inputs, start, stop), label[start:stop], terms[start:stop]
            gradients = cut(found, start, stop)
            for i in range(labels.size):
                y = kind(labels[i])
                bad += zero if abs(labels[i]) == 1 else one
                if add:
                    part += value(np, *read(xs, i), y, *parameters)
                if fill:
                    losses[i] = value(np, *read(xs, i), y, *parameters)
                if gradient:
                    write(gradients, i, slopes(np, wanted, *read(xs, i), y, *parameters), seed)
            if start % GROUP == 0:
                total += group
                group = 0.0
            group += part
            wrong += bad
        return total + group, wrong

    return compiled_loop


class Numba(NumPy):
    """As NumPy, where the loop fits."""

    def value(self, call: Call) -> Array:
        if not _fits(call):
            return super().value(call)
        return self._run(call, (False,) * len(call.operands), None)[0]

    def folded(self, call: Call) -> tuple[Any, Any]:
        if not (call.trusted and _fits(call)):
            return super().folded(call)
        return self.value(call._replace(reduction="sum")), weights_of(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        beyond_inputs = any(wanted[call.loss.first_parameter :])  # a scalar of NumPy fits too
        if not _fits(call) or beyond_inputs or (cotangent is not None and cotangent.ndim):
            return super().gradient(call, wanted, cotangent)
        return self._run(call, wanted[:-1], cotangent)

    def _run(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        count = len(call.loss.inputs)
        inputs, label = call.operands[:count], call.label()
        x = inputs[0]
        kind, empty = x.dtype.type, np.empty(0, x.dtype)
        losses = "fill" if call.reduction == "none" else "add"
        loop = _loop(call.loss, wanted, losses if cotangent is None else "")
        with self.quiet():
            seed = kind(_derivatives.seed_of(np, call, cotangent, weights_of(call))[0])
        parameters = tuple(kind(parameter) for parameter in call.operands[count + 1 :])
        new = partial(np.empty_like, x, subok=False)
        terms = new() if losses == "fill" and cotangent is None else empty
        found = tuple(new() if want else empty for want in wanted[:count])

        def part(start: int, stop: int) -> tuple[float, float]:
            def cut(array: Array) -> Array:
                return array.reshape(-1)[start:stop]

            arrays = tuple(map(cut, inputs)), cut(label)
            result: tuple[float, float] = loop(
                *arrays, parameters, seed, cut(terms), tuple(map(cut, found))
            )
            return result

        threads = allowed(x.size)
        sums = shared(part, [x.size * k // threads for k in range(threads + 1)])
        total, wrong = (sum(column) for column in zip(*sums, strict=True))
        if wrong:
            check_labels(self.xp, call)
        value = None
        if cotangent is None:
            terms = terms if losses == "fill" else np.float64(total)
            value = finished(call, terms, weights_of(call))
        gradients = [
            (gradient if gradient.ndim else gradient[()]) if want else None
            for gradient, want in zip(found, wanted, strict=False)
        ]
        return value, (*gradients, *[None] * (len(wanted) + 1 - count))


def _fits(call: Call) -> bool:
    """Whether the loop is made for a call."""
    operands, at = call.operands, call.loss.first_parameter
    label = call.label().dtype
    return (
        call.weight is None
        and (label.kind == "i" or label in DTYPES)
        and not any(isinstance(parameter, np.ndarray) for parameter in operands[at:])
        and operands[0].dtype in DTYPES
        and all(a.flags.c_contiguous and a.dtype.isnative for a in operands[:at])
    )


ENGINE = Numba()
