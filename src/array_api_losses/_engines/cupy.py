"""CuPy: the pipeline of elements in one kernel of `cupy.fuse`, that of rows in a few of others.

Nothing waits for the device: labels are not read, so the loss of a wrong one is NaN.
"""

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import array_api_compat.cupy as xp
import cupy
import numpy as np

from array_api_losses import _derivatives, _pipeline
from array_api_losses._engines.cupy_kernels import PROGRAMS
from array_api_losses._engines.fused import Fused, identifier
from array_api_losses._engines.plain import Plain
from array_api_losses._loss import Array, Call, Loss
from array_api_losses._primitives import FASTER

FEW = 2**14
"""Fewer elements are added up by one block of threads, as CuPy does in a fused sum of all."""

THREADS = 16
"""So many threads add up a column, in a fused sum along the first axis."""

PART = 2**8
"""So many numbers at most are added up one after another, in a sum along an axis but the last."""


def _zero(y: Any) -> Any:
    return y.dtype.type(0)  # a scalar of NumPy travels as an argument of the kernel


def _sign(d: Any) -> Any:
    return cupy.where(cupy.isnan(d), d, cupy.sign(d))


def _select(y: Any, a: Any, b: Any) -> Any:
    return cupy.where(y > 0, a, b + (y - y))


TRACED: Any = SimpleNamespace(
    __name__=__name__,
    abs=cupy.abs,
    astype=lambda values, dtype: values.astype(dtype),
    exp=cupy.exp,
    expm1=cupy.expm1,
    float32=np.dtype(np.float32),
    isfinite=cupy.isfinite,
    log=cupy.log,
    log1p=cupy.log1p,
    maximum=cupy.maximum,
    minimum=cupy.minimum,
    sign=_sign,
    where=cupy.where,
    zeros_like=_zero,
)
"""What the pipeline may call in `cupy.fuse`, which knows CuPy's own functions, and no keywords."""


def _over(values: Any, axes: tuple[int, ...]) -> Any:
    if len(axes) == values.ndim:
        return cupy.sum(values, keepdims=True)
    for axis in reversed(axes):
        values = _along(values, axis)
    return values


def _along(values: Any, axis: int) -> Any:
    """Return the sum along an axis, which stays with length 1.

    Along any but the last, CuPy lets few threads add up what may be millions, which rounds as
    often, and in no more blocks of threads than there are sums, which takes long.
    """
    *before, n = values.shape[: axis + 1]
    if n <= PART or axis == values.ndim - 1:
        return cupy.sum(values, axis, keepdims=True)
    even = n - n % PART
    head, tail = cupy.split(values, [even], axis)
    head = head.reshape(*before, PART, even // PART, *values.shape[axis + 1 :])
    found = _along(cupy.sum(head, axis), axis)
    return found + _along(tail, axis) if even < n else found


FASTER["steep"][xp.__name__] = FASTER["sign"][xp.__name__] = _sign
FASTER["over"][xp.__name__] = _over
for _name in (xp.__name__, TRACED.__name__):
    FASTER["zero"][_name] = _zero
    FASTER["select"][_name] = _select

KERNELS: list[Any] = []


def _fused(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Let `cupy.fuse` make kernels of a function.

    At any error it turns, silently and for good, to a way that is much slower; so all are listed,
    for the tests to see that none has.
    """

    def fuse(function: Callable[..., Any]) -> Any:
        KERNELS.append(cupy.fuse(kernel_name=identifier(name))(function))
        return KERNELS[-1]

    return fuse


def _losses(loss: Loss, arguments: tuple[Any, ...], *, wide: bool) -> Any:
    call = _pipeline.prepared(TRACED, _call(loss, arguments))
    dtype = arguments[0].dtype
    dtype = _pipeline.accumulator(TRACED, dtype) if wide else dtype
    return _pipeline.cast(TRACED, _pipeline.terms_of(TRACED, call), dtype)


def _call(loss: Loss, arguments: tuple[Any, ...]) -> Call:
    return Call(loss, arguments[:-1], arguments[-1], "none", None)


@cache
def fused_losses(loss: Loss, *, wide: bool) -> Any:
    """Return the kernel of the weighted losses, in their dtype or in at least float32."""

    @_fused(loss.name)
    def losses(*arguments: Any) -> Any:
        return _losses(loss, arguments, wide=wide)

    return losses


@cache
def fused_sum(loss: Loss, axis: int | None) -> Any:
    """Return the kernel that adds up the weighted losses, along an axis or all of them."""

    @_fused(f"{loss.name}_sum")
    def sums(*arguments: Any) -> Any:
        return cupy.sum(_losses(loss, arguments, wide=True), axis)

    return sums


@cache
def fused_gradients(loss: Loss, wanted: tuple[bool, ...], whole: tuple[bool, ...]) -> Any:
    """Return the kernel of the gradients that are wanted, by element.

    In arguments that are whole, and so are not broadcast, they come in the dtype of the inputs.
    """

    @_fused(f"{loss.name}_gradients")
    def gradients(factor: Any, divisor: Any, mean: Any, *arguments: Any) -> Any:
        call, dtype = _call(loss, arguments), arguments[0].dtype
        found = _derivatives.gradients_by_element(TRACED, call, wanted, (factor, divisor), mean)
        return tuple(
            _pipeline.cast(TRACED, gradient, dtype) if gradient is not None and last else gradient
            for gradient, last in zip(found, whole, strict=True)
        )

    return gradients


@_fused("finished")
def fused_finish(total: Any, weights: Any, like: Any) -> Any:
    """Divide a sum by W; the mean has the dtype of `like`."""
    return _pipeline.finished(TRACED, total, weights, like.dtype)


class CuPy(Fused):
    """One kernel for the losses or their sum, and one for all gradients; a few for those of rows.

    CuPy computes on the current device, which need not be that of the arrays.
    """

    def value(self, call: Call) -> Array:
        with call.operands[0].device:
            return super().value(call)

    def run(self, call: Call) -> Array:
        if not _is_fused(call):
            return super().run(call)
        dtype = call.operands[0].dtype
        if call.reduction == "none":
            if call.loss.rowwise:
                return _pipeline.cast(xp, PROGRAMS.terms(call), dtype)
            return fused_losses(call.loss, wide=False)(*_arguments(call))
        total, weights = self.folded(call)
        if weights is None:
            return _pipeline.cast(xp, total, dtype)
        if isinstance(weights, int):
            weights = total.dtype.type(weights)
        return fused_finish(total, weights, dtype.type(0))

    def folded(self, call: Call) -> tuple[Array, Any]:
        return (_sum(call), self.weights(call)) if _is_fused(call) else super().folded(call)

    def gradient(
        self, call: Call, wanted: tuple[bool, ...], cotangent: Array | None
    ) -> tuple[Array | None, tuple[Array | None, ...]]:
        kind = Fused if _is_fused(call) else Plain
        with call.operands[0].device:
            return kind.gradient(self, call, wanted, cotangent)

    def by_element(
        self,
        call: Call,
        wanted: tuple[bool, ...],
        seed: tuple[Any, Array | None],
        mean: Array | None,
    ) -> Sequence[Array]:
        if call.loss.rowwise:
            return PROGRAMS.by_element(call, wanted, seed, mean)
        wide = np.dtype(_pipeline.accumulator(TRACED, call.operands[0].dtype)).type
        factor, divisor = [wide(v) if isinstance(v, (int, float)) else v for v in seed]
        shape = call.shape()
        whole = tuple(getattr(argument, "shape", ()) == shape for argument in call.arguments())
        kernel = fused_gradients(call.loss, wanted, whole)
        found: Sequence[Array] = kernel(factor, divisor, mean, *_arguments(call))
        return found

    def traits(self, arrays: tuple[Array, ...]) -> tuple[Any, ...] | None:
        found: list[Any] = []
        for array in arrays:
            if type(array) is not cupy.ndarray:
                return None
            found += array.dtype, array.data.device_id
        return tuple(found)


def _is_fused(call: Call) -> bool:
    """Whether there are kernels for a call.

    Those of rows compute in one dtype, in which a wrong label of a wider one may be a good one;
    and of no entries there is no largest.
    """
    loss, first = call.loss, call.operands[0]
    if not loss.rowwise:
        return True
    if loss.label is None or call.label().dtype.kind == "i":
        return bool(first.shape[-1] > 0)
    wide = _pipeline.accumulator(TRACED, first.dtype)
    return bool(first.shape[-1] > 0 and np.can_cast(call.label().dtype, wide))


def _arguments(call: Call) -> list[Any]:
    """Return the arguments for a kernel, which takes numbers in the dtype of the inputs."""
    kind = call.operands[0].dtype.type
    return [kind(a) if isinstance(a, float) else a for a in call.arguments()]


def _sum(call: Call) -> Array:
    """Return the sum of the weighted losses, in at least float32."""
    if call.loss.rowwise:
        return cupy.sum(PROGRAMS.terms(call))
    loss, arguments, size = call.loss, _arguments(call), call.operands[0].size
    if size < FEW:
        return fused_sum(loss, None)(*arguments)
    if not all(_is_whole(argument, call.shape()) for argument in arguments):
        return cupy.sum(fused_losses(loss, wide=True)(*arguments))
    # Columns enough to keep a GPU busy, and so many that no thread adds up much, which rounds; and
    # as many more as leave little over, which few threads add up.
    rows = size // max(min(size // THREADS, 2**16), size // 2**10)
    columns = size // rows
    even = rows * columns

    def part(start: int, stop: int, *shape: int) -> list[Any]:
        return [
            a.reshape(-1)[start:stop].reshape(-1, *shape) if np.ndim(a) else a for a in arguments
        ]

    total = cupy.sum(fused_sum(loss, 0)(*part(0, even, columns)))
    return total if even == size else total + fused_sum(loss, None)(*part(even, size))


def _is_whole(argument: Any, shape: tuple[int, ...]) -> bool:
    """Whether an argument is a number, or lies in one piece and has a shape."""
    return not np.ndim(argument) or (argument.shape == shape and argument.flags.c_contiguous)


ENGINE = CuPy(xp)
